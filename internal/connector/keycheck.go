// keycheck.go checks the commit table of a server before the first key is inserted there.

package connector

import (
	"context"
	"log/slog"

	"github.com/livepool/livepool/internal/committable"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// checkCommitTable checks the commit table of the connection's server: once for each
// server, or for each connection where the server cannot be identified. It uses SHOW
// CREATE TABLE, because a query of MySQL's information_schema would take the snapshot of
// the unit under way. A server that does not show its table is trusted.
func (c *conn) checkCommitTable(ctx context.Context) error {
	if c.commitTableOK || c.ctr.servers.commitTableOK(c.facts, false) {
		c.commitTableOK = true
		return nil
	}
	ct := &c.ctr.CommitTable
	query, mark := "SHOW CREATE TABLE "+ct.Name, c.written()
	row, err := c.driverConn.QueryRow(ctx, query)
	switch {
	case driverconn.IsAnswer(err) && (mysqlerr.Number(err) == 0 || c.ctr.Classify(err)&(mysqlerr.TxGone|mysqlerr.ConnDead|mysqlerr.Retry|mysqlerr.StatementUndone) == 0):
		c.ctr.Cfg.Log.Debug("livepool: the server does not show the commit table; whether it can keep the promise of Once and VerifyCommit is not known",
			slog.String("addr", c.addr()), slog.String("table", ct.Name), slog.Any("cause", err))
		c.touch()
		return nil // if the table does not exist, the insert fails and says so
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

// commitTableOK says whether the commit table of a server was found good; mark records
// that it was.
func (ss *servers) commitTableOK(facts *serverFacts, mark bool) bool {
	if facts == nil {
		return false
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.known[facts.identity.Server]
	if s == nil {
		return false
	}
	s.commitTableOK = s.commitTableOK || mark
	return s.commitTableOK
}
