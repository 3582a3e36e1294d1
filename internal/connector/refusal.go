// refusal.go is about connections whose server answers and refuses: writes, since
// it was demoted, or because the session itself asked for that; or all work, for
// the sake of the account or of what an earlier borrower has left.

package connector

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// demotion is what is known of a server that takes no writes any more. The
// address may lead elsewhere by now, so that the pool's connections are replaced:
// once, and not each time that a unit is refused by a server that stays read-only.
type demotion struct {
	mu           sync.Mutex    // guards what follows
	known        bool          // and not long ago
	since        time.Duration // it was met
	trustedUntil time.Duration // it is believed of connections opened since; then it is looked at again
	trustFor     time.Duration // how long that was
}

// How long a server is believed to be read-only without another look: that is the
// price in connections of one that never takes writes again.
const (
	demotionMin = 10 * time.Second
	demotionMax = 2 * time.Minute
)

// record notes a refusal by a connection that was opened at born. It says whether
// the connection is to be left, and whether all that exist now are.
func (d *demotion) record(born, now time.Duration) (dead, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known && now < d.trustedUntil {
		return born < d.since, false
	}
	if d.known && now < d.trustedUntil+d.trustFor {
		d.trustFor = min(2*d.trustFor, demotionMax)
	} else {
		d.trustFor = demotionMin
	}
	d.known, d.since, d.trustedUntil = true, now, now+d.trustFor
	return true, true
}

// clear notes that writes are taken again: the next refusal is another demotion.
func (d *demotion) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = false
}

// noteWriteRefusal leaves a server that takes no writes: the next attempt must not
// meet it again by another old connection.
func (c *conn) noteWriteRefusal() {
	dead, all := c.ctr.demotion.record(c.born, c.ctr.clock.Now())
	c.dead = c.dead || dead
	if all {
		c.ctr.generation.CompareAndSwap(c.generation, c.generation+1)
	}
}

// readOnlyTransaction is ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION.
const readOnlyTransaction = 1792

// sessionReadOnlyError is 1792 of a session that asked for it.
type sessionReadOnlyError struct{ cause error }

func (e *sessionReadOnlyError) Error() string {
	return fmt.Sprintf("livepool: not sent to another connection, because this one was made read-only itself (transaction_read_only), and not its server: %v", e.cause)
}
func (e *sessionReadOnlyError) Unwrap() error         { return e.cause }
func (e *sessionReadOnlyError) Class() mysqlerr.Class { return mysqlerr.StatementUndone }

// asSessionReadOnly tells a refusal for which the session asked, by SET SESSION TRANSACTION
// READ ONLY or a variable of the DSN, from that of a server which is read-only.
func (c *conn) asSessionReadOnly(err error) error {
	if mysqlerr.Number(err) != readOnlyTransaction || !c.ctr.IsMySQL || c.ctr.rejectReadOnly || c.openResults > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.PingTimeout)
	defer cancel()
	isOn := func(scope string) bool {
		_, err := c.driverConn.queryRow(ctx, "SHOW "+scope+" VARIABLES WHERE Variable_name IN ('transaction_read_only', 'tx_read_only') AND Value = 'ON'")
		return err == nil
	}
	if isOn("SESSION") && !isOn("GLOBAL") && !c.isBroken() {
		return &sessionReadOnlyError{err}
	}
	return err
}

// Refusals of all work, by connections that answer pings.
const (
	accessDenied           = 1045 // a proxy says so of a statement, after the password was changed
	xaBranchOpen           = 1399 // ER_XAER_RMFAIL: an XA branch was left on the connection
	passwordExpired        = 1820 // ER_MUST_CHANGE_PASSWORD
	passwordExpiredAtLogin = 1862 // ER_MUST_CHANGE_PASSWORD_LOGIN
	accountLocked          = 3118 // ER_ACCOUNT_HAS_BEEN_LOCKED
)

// isAllWorkRefused says whether an error means that its connection is of no use any
// more, to anyone. What its borrower has brought about himself he can end himself.
func (c *conn) isAllWorkRefused(err error) bool {
	switch mysqlerr.Number(err) {
	case passwordExpired, passwordExpiredAtLogin, accountLocked:
		return true
	case xaBranchOpen:
		return !c.answeredSinceCheckout && !c.transaction.open
	case accessDenied: // which LOAD DATA INFILE may meet, too
		ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.PingTimeout)
		defer cancel()
		_, retryErr := c.driverConn.ExecContext(ctx, workPing, nil)
		return mysqlerr.Number(retryErr) == accessDenied
	}
	return false
}

// leaveUseless leaves such a connection, and those that have logged in before
// it was found out. It returns an error on which database/sql takes another, if
// that may help: not of a new login, nor after a part of the request may have run.
func (c *conn) leaveUseless(err error, partlyRan bool) error {
	c.dead = true
	fresh := c.ctr.clock.Now()-c.born < time.Second
	if mysqlerr.Number(err) != xaBranchOpen && !fresh {
		c.ctr.generation.CompareAndSwap(c.generation, c.generation+1)
	}
	if partlyRan || fresh || c.transaction.open || c.answeredSinceCheckout {
		return err
	}
	return c.newBadConnError(err, "because it refuses all work")
}
