// keycheck.go looks at the commit table of a connection's server before a unit
// trusts it with its key.

package livepool

import (
	"context"
	"log/slog"
)

// checkCommitTable looks at the commit table of the connection's server before the
// first key is inserted there: once for each server, or for each connection where
// the server does not say who it is. SHOW CREATE TABLE takes no snapshot, as
// MySQL's information_schema does, so that a unit that is under way is not
// disturbed. A server that does not show it is trusted.
func (c *conn) checkCommitTable(ctx context.Context) error {
	if c.keepsKeys || c.ctr.servers.keepsKeys(c.facts, false) {
		c.keepsKeys = true
		return nil
	}
	ct := &c.ctr.commits
	query, mark := "SHOW CREATE TABLE "+ct.name, c.written()
	row, err := c.inner.askRow(ctx, query)
	switch {
	case isAnswer(err) && (errorNumber(err) == 0 || c.ctr.classify(err)&(TxGone|ConnDead|Retry|StatementUndone) == 0):
		c.ctr.cfg.Log.Debug("livepool: the server does not show the commit table; whether it can keep the promise of Once and VerifyCommit is not known",
			slog.String("addr", c.ctr.addr), slog.String("table", ct.name), slog.Any("cause", err))
		c.prove()
		return nil // a table that is not there is the insert's to tell
	case err != nil:
		return c.failed(ctx, err, query, mark, effectNone)
	case len(row) < 2:
		return nil
	}
	c.prove()
	if _, lacks := inspectDDL(row[1]); lacks != nil {
		return ct.refusal(lacks)
	}
	c.keepsKeys = true
	c.ctr.servers.keepsKeys(c.facts, true)
	return nil
}

// keepsKeys says whether the commit table of a server was seen to keep the promise.
func (ss *servers) keepsKeys(facts *serverFacts, now bool) bool {
	if facts == nil {
		return false
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.known[facts.server]
	if s == nil {
		return false
	}
	s.keepsKeys = s.keepsKeys || now
	return s.keepsKeys
}
