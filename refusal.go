// refusal.go is about connections whose server answers and refuses: writes, since
// it was demoted, or because the session itself asked for that; or all work, for
// the sake of the account or of what an earlier borrower has left.

package livepool

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// demotion is what is known of a server that takes no writes any more. The
// address may lead elsewhere by now, so that the pool's connections are replaced:
// once, and not each time that a unit is refused by a server that stays read-only.
type demotion struct {
	mu    sync.Mutex    // guards what follows
	known bool          // and not long ago
	since time.Duration // it was met
	until time.Duration // it is believed of connections opened since; then it is looked at again
	pause time.Duration // how long that was
}

// How long a server is believed to be read-only without another look: that is the
// price in connections of one that never takes writes again.
const (
	demotionShortest = 10 * time.Second
	demotionLongest  = 2 * time.Minute
)

// meets notes a refusal by a connection that was opened at born. It says whether
// the connection is to be left, and whether all that exist now are.
func (d *demotion) meets(born, now time.Duration) (leave, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known && now < d.until {
		return born < d.since, false
	}
	if d.known && now < d.until+d.pause {
		d.pause = min(2*d.pause, demotionLongest)
	} else {
		d.pause = demotionShortest
	}
	d.known, d.since, d.until = true, now, now+d.pause
	return true, true
}

// ends notes that writes are taken again: the next refusal is another demotion.
func (d *demotion) ends() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = false
}

// refusedWrite leaves a server that takes no writes: the next attempt must not
// meet it again by another old connection.
func (c *conn) refusedWrite() {
	leave, all := c.ctr.demotion.meets(c.born, c.ctr.clock.now())
	c.dead = c.dead || leave
	if all {
		c.ctr.generation.CompareAndSwap(c.generation, c.generation+1)
	}
}

// readOnlyTransaction is ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION.
const readOnlyTransaction = 1792

// guardedError is 1792 of a session that asked for it.
type guardedError struct{ cause error }

func (e *guardedError) Error() string {
	return fmt.Sprintf("livepool: not sent to another connection, because this one was made read-only itself (transaction_read_only), and not its server: %v", e.cause)
}
func (e *guardedError) Unwrap() error { return e.cause }
func (e *guardedError) class() Class  { return StatementUndone }

// guarded tells a refusal for which the session asked, by SET SESSION TRANSACTION
// READ ONLY or a variable of the DSN, from that of a server which is read-only.
func (c *conn) guarded(err error) error {
	if errorNumber(err) != readOnlyTransaction || !c.ctr.mysql || c.ctr.rejectsReadOnly || c.results > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.cfg.PingTimeout)
	defer cancel()
	isOn := func(scope string) bool {
		_, err := c.inner.askRow(ctx, "SHOW "+scope+" VARIABLES WHERE Variable_name IN ('transaction_read_only', 'tx_read_only') AND Value = 'ON'")
		return err == nil
	}
	if isOn("SESSION") && !isOn("GLOBAL") && !c.isGone() {
		return &guardedError{err}
	}
	return err
}

// Refusals of all work, by connections that answer pings.
const (
	accessDenied    = 1045 // a proxy says so of a statement, after the password was changed
	branchIsOpen    = 1399 // ER_XAER_RMFAIL: an XA branch was left on the connection
	passwordExpired = 1820 // ER_MUST_CHANGE_PASSWORD
	passwordIsOver  = 1862 // ER_MUST_CHANGE_PASSWORD_LOGIN
	accountLocked   = 3118 // ER_ACCOUNT_HAS_BEEN_LOCKED
)

// refusesAllWork says whether an error means that its connection is of no use any
// more, to anyone. What its borrower has brought about himself he can end himself.
func (c *conn) refusesAllWork(err error) bool {
	switch errorNumber(err) {
	case passwordExpired, passwordIsOver, accountLocked:
		return true
	case branchIsOpen:
		return !c.spoke && !c.transaction.open
	case accessDenied: // which LOAD DATA INFILE may meet, too
		ctx, cancel := context.WithTimeout(context.Background(), c.ctr.cfg.PingTimeout)
		defer cancel()
		_, again := c.inner.ExecContext(ctx, askForWork, nil)
		return errorNumber(again) == accessDenied
	}
	return false
}

// leavesUseless leaves such a connection, and those that have logged in before
// it was found out. It returns an error on which database/sql takes another, if
// that may help: not of a new login, nor after a part of the request may have run.
func (c *conn) leavesUseless(err error, inPart bool) error {
	c.dead = true
	fresh := c.ctr.clock.now()-c.born < time.Second
	if errorNumber(err) != branchIsOpen && !fresh {
		c.ctr.generation.CompareAndSwap(c.generation, c.generation+1)
	}
	if inPart || fresh || c.transaction.open || c.spoke {
		return err
	}
	return c.lost(err, "because it refuses all work")
}
