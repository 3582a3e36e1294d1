// keycheck.go looks at the commit table of a connection's server before a unit
// trusts it with its key.

package connector

import (
	"context"
	"log/slog"

	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// checkCommitTable looks at the commit table of the connection's server before the
// first key is inserted there: once for each server, or for each connection where
// the server does not say who it is. SHOW CREATE TABLE takes no snapshot, as
// MySQL's information_schema does, so that a unit that is under way is not
// disturbed. A server that does not show it is trusted.
func (c *conn) checkCommitTable(ctx context.Context) error {
	if c.commitTableOK || c.ctr.servers.commitTableOK(c.facts, false) {
		c.commitTableOK = true
		return nil
	}
	ct := &c.ctr.CommitTable
	query, mark := "SHOW CREATE TABLE "+ct.Name, c.written()
	row, err := c.driverConn.queryRow(ctx, query)
	switch {
	case isServerAnswer(err) && (mysqlerr.Number(err) == 0 || c.ctr.Classify(err)&(mysqlerr.TxGone|mysqlerr.ConnDead|mysqlerr.Retry|mysqlerr.StatementUndone) == 0):
		c.ctr.Cfg.Log.Debug("livepool: the server does not show the commit table; whether it can keep the promise of Once and VerifyCommit is not known",
			slog.String("addr", c.ctr.addr), slog.String("table", ct.Name), slog.Any("cause", err))
		c.touch()
		return nil // a table that is not there is the insert's to tell
	case err != nil:
		return c.handleFailure(ctx, err, query, mark, effectlessRequest)
	case len(row) < 2:
		return nil
	}
	c.touch()
	if _, defects := committable.Inspect(row[1]); defects != nil {
		return ct.Refusal(defects)
	}
	c.commitTableOK = true
	c.ctr.servers.commitTableOK(c.facts, true)
	return nil
}

// commitTableOK says whether the commit table of a server was seen to keep the promise.
func (ss *servers) commitTableOK(facts *serverFacts, mark bool) bool {
	if facts == nil {
		return false
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.known[facts.server]
	if s == nil {
		return false
	}
	s.commitTableOK = s.commitTableOK || mark
	return s.commitTableOK
}
