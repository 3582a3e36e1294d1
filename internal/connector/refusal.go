// refusal.go is about connections whose server answers but refuses: writes, because it
// was demoted or the session asked for read-only; or all work, because of the account or
// of what an earlier borrower has left.

package connector

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/livepool/livepool/internal/hosts"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// demotion is what is known of a server that refuses writes. The address may lead to
// another server by now, so the pool's connections are replaced: once, and not each time
// that a server that stays read-only refuses a unit.
type demotion struct {
	mu           sync.Mutex    // guards what follows
	known        bool          // a refusal was recorded, and no write accepted since
	since        time.Duration // when it was recorded
	trustedUntil time.Duration // until then connections opened after since are kept, though they refuse
	trustFor     time.Duration // how long that is
}

// How long a server counts as read-only before its connections are replaced again. It
// bounds how many connections a server costs that never accepts writes again.
const (
	demotionShortest = 10 * time.Second
	demotionLongest  = 2 * time.Minute
)

// record notes a refusal by a connection that was opened at born. It says whether that
// connection must be discarded, and whether all that exist now must.
func (d *demotion) record(born, now time.Duration) (dead, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known && now < d.trustedUntil {
		return born < d.since, false
	}
	if d.known && now < d.trustedUntil+d.trustFor {
		d.trustFor = min(2*d.trustFor, demotionLongest)
	} else {
		d.trustFor = demotionShortest
	}
	d.known, d.since, d.trustedUntil = true, now, now+d.trustFor
	return true, true
}

// clear notes that writes are accepted again: the next refusal is another demotion.
func (d *demotion) clear() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = false
}

// noteWriteRefusal retires the connections of a server that refuses writes, so that the
// next attempt does not get another old one. A plain transaction does not wait for the
// prober, which notices when the address leads elsewhere: so it leaves no connection in the
// pool that is older than a second.
func (c *conn) noteWriteRefusal(refusal error) {
	if c.noteDemotion(refusal) || mysqlerr.IsNodeNotReady(refusal) { // of which noteNotReady takes care
		return
	}
	now := c.ctr.clock.Now()
	dead, all := c.ctr.demotion.record(c.born, now)
	c.dead = c.dead || dead || c.transaction.unit == nil && !c.isFresh(now)
	if all {
		c.retirePeers()
	}
}

// noteDemotion has the pool look for another primary, if err is the refusal of a write by a
// server that was one, and there are other hosts. It says whether that is so. A Galera node that
// is out of its cluster may still say that it takes writes (wsrep_dirty_reads).
func (c *conn) noteDemotion(err error) bool {
	isNodeOut := mysqlerr.IsNodeNotReady(err) && c.ctr.HasOtherHosts() // behind one address are others
	if !c.ctr.followsPrimary() || !mysqlerr.IsWriteRefusal(err) && !isNodeOut {
		return false
	}
	c.dead = true
	c.ctr.noteDemotion(c.host, c.requestStarted, err)
	return true
}

// wrongTargetError is the refusal of a write by a pool that was told to use replicas. Another
// connection would meet it too.
type wrongTargetError struct{ cause error }

func (e *wrongTargetError) Error() string {
	return fmt.Sprintf("livepool: a write was refused, since the pool uses replicas (pool_target); use a pool on the primary for it: %v", e.cause)
}
func (e *wrongTargetError) Unwrap() error         { return e.cause }
func (e *wrongTargetError) Class() mysqlerr.Class { return mysqlerr.StatementUndone }

// asWrongTarget marks the refusal of a write in such a pool.
func (c *conn) asWrongTarget(err error) error {
	isReadPool := c.ctr.Cfg.Target == hosts.Replica || c.ctr.Cfg.Target == hosts.PreferReplica
	if isReadPool && mysqlerr.IsWriteRefusal(err) {
		return &wrongTargetError{err}
	}
	return err
}

// isFresh says whether the connection was opened a moment ago: what it meets, another one
// that is opened now meets, too.
func (l *link) isFresh(now time.Duration) bool { return now-l.born < time.Second }

// retirePeers does what Recycle does, unless it was called, or this was done, since the
// connection was opened.
func (c *conn) retirePeers() { c.host.generation.CompareAndSwap(c.generation, c.generation+1) }

// readOnlyTransaction is ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION.
const readOnlyTransaction = 1792

// sessionReadOnlyError is error 1792 in a session that asked for read-only itself.
type sessionReadOnlyError struct{ cause error }

func (e *sessionReadOnlyError) Error() string {
	return fmt.Sprintf("livepool: not sent to another connection, because this one was made read-only itself (transaction_read_only), and not its server: %v", e.cause)
}
func (e *sessionReadOnlyError) Unwrap() error         { return e.cause }
func (e *sessionReadOnlyError) Class() mysqlerr.Class { return mysqlerr.StatementUndone }

// asSessionReadOnly marks a refusal that the session asked for, by SET SESSION
// TRANSACTION READ ONLY or a variable of the DSN. Any other is that of a read-only
// server, and returned as it is.
func (c *conn) asSessionReadOnly(err error) error {
	if mysqlerr.Number(err) != readOnlyTransaction || !c.ctr.IsMySQL || c.ctr.rejectReadOnly || c.openResults > 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.PingTimeout)
	defer cancel()
	isOn := func(scope string) bool {
		_, err := c.driverConn.QueryRow(ctx, "SHOW "+scope+" VARIABLES WHERE Variable_name IN ('transaction_read_only', 'tx_read_only') AND Value = 'ON'")
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

// isAllWorkRefused says whether an error means that the connection is of no use to
// anyone any more. It is not, if its borrower has caused the refusal and can end it.
func (c *conn) isAllWorkRefused(err error) bool {
	switch mysqlerr.Number(err) {
	case passwordExpired, passwordExpiredAtLogin, accountLocked:
		return true
	case xaBranchOpen:
		return !c.answeredSinceCheckout && !c.transaction.open
	case accessDenied: // LOAD DATA INFILE may get it, too
		ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.PingTimeout)
		defer cancel()
		_, retryErr := c.driverConn.ExecContext(ctx, workPing, nil)
		return mysqlerr.Number(retryErr) == accessDenied
	}
	return false
}

// leaveUseless discards such a connection, and those opened before. Where another
// connection may help it returns an error on which database/sql takes one: not after a
// new login, nor if a part of the request may have run.
func (c *conn) leaveUseless(err error, partlyRan bool) error {
	c.dead = true
	fresh := c.isFresh(c.ctr.clock.Now())
	if mysqlerr.Number(err) != xaBranchOpen && !fresh {
		c.retirePeers()
	}
	if partlyRan || fresh || c.transaction.open || c.answeredSinceCheckout {
		return err
	}
	return c.newBadConnError(err, "because it refuses all work")
}
