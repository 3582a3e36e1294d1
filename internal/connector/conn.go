// conn.go wraps each connection of the driver: what it is, who has it, when it
// last proved itself, and the requests on it. Whether it is alive is ping.go's
// and recycle.go's affair, what follows from a failure failure.go's.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/wire"
)

// conn is the driver.Conn that database/sql holds. database/sql uses it from
// one goroutine at a time (it holds its lock around every call).
type conn struct {
	ctr *Connector
	slot
	link

	// needsCheck: handed out, or about to be, without a look. database/sql does
	// not reset a connection before its first use, which may be long after its
	// birth: opened for a waiter who then gave up, it is parked and handed out
	// later as it is. So a connection is born unchecked.
	needsCheck bool
	// used: something ran since the last checkout. As long as nothing has, no
	// state of the caller's is on it, and a dead link can be replaced in place.
	used bool
	// answeredSinceCheckout: a statement was answered since the last checkout.
	answeredSinceCheckout bool
	// pingSkipped: it was not pinged for want of the caller's time.
	pingSkipped bool
	// rawExposed: the driver's own connection was given to its owner, who may be using
	// it at any time until he returns it.
	rawExposed bool
	// openResults is how many are open; on a driver's connection that livepool cannot
	// ping, only those inside transactions are counted.
	openResults int
	// requestStarted is when the last request was begun, or a little earlier.
	requestStarted time.Duration
	// dead: its server has given it up, or is no good; it is closed when it is
	// returned.
	dead bool
	// dirty: something was left on it that the next borrower must not see.
	// Only its borrower writes it.
	dirty bool
	// unconnected: it has no link: its first user is to open one, or the one it had
	// was closed and there is no other yet.
	unconnected bool
	// handOverOnClose: its link is for those who wait because the server is full, as soon
	// as database/sql, which closes the connection, has closed its statements on
	// it: nobody else knows them.
	handOverOnClose bool
	// everConnected: it has, or has had, a link.
	everConnected bool
	// argsDeferred: arguments were let through while there was no driver to
	// convert them.
	argsDeferred bool

	spare     bool          // database/sql does not have it yet
	idleSince time.Duration // it is idle

	// What others may know while somebody uses it.
	hasLink atomic.Bool // it has a link
	// rechecking: it is idle and being asked whether it is alive; until then it is
	// not ready for anybody.
	rechecking  atomic.Bool
	currentWire atomic.Pointer[serverSide] // the link's
	checkout    atomic.Pointer[checkout]   // by whom, if LeakAfter asks for it
	reuses      atomic.Int64               // checkouts after the first

	transaction transaction

	tx         tx
	inlineStmt stmt        // the one open statement that most callers have at a time
	inlineRows wrappedRows // and the one open result
}

// link is one connection to the server.
type link struct {
	serial           int64 // no two of a pool's are the same
	driverConn       driverConn
	wire             *wire.Conn  // nil where livepool's dialer was not used
	serverSide       *serverSide // and nil until it has logged in
	born             time.Duration
	expires          time.Duration
	lastRoundTrip    time.Duration // when the last round trip completed
	generation       uint64
	openStmts        int           // statements that are open on it
	answeredEver     bool          // a statement was answered on it
	lossReported     bool          // its death has been told
	refusalTrustedAt time.Duration // when its refusal of a statement was taken for the truth; -1: never
	facts            *serverFacts  // of its server, nil if it does not say
	commitTableOK    bool          // its server's commit table was checked, see checkCommitTable
	keepAlive        time.Duration // how often it is pinged while it is idle, 0 for never
	pingAfter        time.Duration // how long a completed round trip stands for a ping
}

// touch notes a completed round trip, a little early rather than late.
func (c *conn) touch() {
	earliest, _ := c.ctr.clock.Bounds()
	c.lastRoundTrip = max(c.lastRoundTrip, earliest)
}

// recordAnswer notes a statement that was answered.
func (c *conn) recordAnswer() {
	c.touch()
	c.answeredEver, c.answeredSinceCheckout = true, true
}

// threadID is the server's id for the connection, 0 when it is not known.
func (l *link) threadID() uint32 {
	if l.wire == nil {
		return 0
	}
	return l.wire.Handshake.ThreadID
}

// close never waits for a peer that takes no more bytes.
func (l *link) close() error {
	if l.driverConn.Conn == nil {
		return nil
	}
	if l.wire != nil {
		l.wire.SetWriteDeadline(time.Now().Add(time.Second))
	}
	return l.driverConn.Close()
}

// Raw returns the driver's own connection, for what only that can do. It
// belongs inside sql.Conn.Raw, whose function gets the wrapped one. It is nil
// if the connection could not be opened. What it is used for is not seen, so that
// a connection of the MySQL driver is closed when it is returned.
func (c *conn) Raw() driver.Conn {
	if _, err := c.beginRequest(context.Background(), "", 0); err != nil {
		return nil
	}
	c.dirty = c.dirty || c.ctr.IsMySQL
	c.rawExposed = true
	return c.driverConn.Conn
}

// ResetSession is a checkout. Whatever it finds wrong it reports as
// driver.ErrBadConn: database/sql ignores any other error here, and hands the
// dead connection out. But a session keeps the connection as a shell, to be
// filled when its transaction begins: given back, it could go to someone else,
// and the session wait again, with nothing to bound that.
func (c *conn) ResetSession(ctx context.Context) error {
	session := noteSessionServed(ctx)
	c.acquire(ctx)
	// One whose link was left to who asks about it gets another at its first use.
	c.used, c.answeredSinceCheckout, c.needsCheck, c.pingSkipped, c.rawExposed = false, false, c.unconnected, false, false
	if !c.unconnected {
		v := c.check(ctx, c.ctr.Cfg.PrePing)
		if v == keep {
			c.reuses.Add(1)
			c.trackCheckout("")
			c.park()
			return nil
		}
		c.discard(v)
	}
	if !session {
		return driver.ErrBadConn
	}
	return nil
}

// discard takes the link away from a connection that is not handed out. A suspect
// one is asked in the background, and kept if it answers.
func (c *conn) discard(v Verdict) {
	l := c.detach()
	if v == BySilence && c.ctr.recheck(l) {
		return
	}
	c.ctr.recordDiscard(&l, v)
	l.close()
}

// IsValid is a return: false closes the connection. The time of the last round
// trip serves as now, which spares reading the clock.
func (c *conn) IsValid() bool {
	if !isCheckedOut(c.state.Load()) {
		return true // returned by a waiter who had got it but gave up before the checkout
	}
	_ = c.resumeBounded() // what fails here makes it a dead one
	c.untrackCheckout()
	switch {
	case c.dead, c.unconnected:
		return false
	case !c.driverConn.IsValid():
		c.reportLoss(nil)
		c.abandon()
		return false
	case c.dirty:
		c.releaseLocks()
		return false
	}
	if v := c.retirement(c.ctr, c.lastRoundTrip); v != keep {
		c.ctr.recordDiscard(&c.link, v)
		return false
	}
	c.idleSince = c.lastRoundTrip
	if c.ctr.Outage.fullAndAwaited.Load() {
		c.handOverOnClose = true
		return false
	}
	c.state.Store(idle)
	return true
}

// handOver gives a link to those who wait because the server takes no more
// connections. database/sql would let them wait beside it.
func (ctr *Connector) handOver(l link) {
	ctr.addSpare(l)
	select {
	case ctr.Outage.handedOver <- struct{}{}:
	default: // more are offered than are taken
	}
}

// releaseLocks gives back the named locks of a borrower at once: after the
// connection is closed the server keeps them for as long as it takes to notice.
func (c *conn) releaseLocks() {
	if !c.ctr.IsMySQL {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.PingTimeout)
	defer cancel()
	_, _ = c.driverConn.ExecContext(ctx, "DO RELEASE_ALL_LOCKS()", nil)
}

// Close closes the connection to the server. If it is being visited, that is
// the visitor's to do.
func (c *conn) Close() error {
	c.ctr.forget(c)
	c.mu.Lock()
	wasIdle := c.state.Load() == idle
	l := c.detach()
	c.closed = true
	if c.reservation != nil {
		c.reservation, l = nil, link{}
	}
	c.mu.Unlock()
	if c.handOverOnClose && l.openStmts == 0 && l.driverConn.Conn != nil {
		c.ctr.handOver(l)
		return nil
	}
	if wasIdle && c.ctr.keepForMinIdle(l, c.idleSince) {
		return nil
	}
	return l.close()
}

// recordDiscard counts a link that is given up, and logs it. One that was taken from
// a caller who gave up is counted then.
func (ctr *Connector) recordDiscard(l *link, v Verdict) {
	if l.driverConn.Conn == nil {
		return
	}
	ctr.Stats.Discards[v].Add(1)
	if ctr.Cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		ctr.Cfg.Log.Debug("livepool: connection discarded", append(ctr.describe(l), slog.String("why", v.String()))...)
	}
}

// describe says which connection, for a log.
func (ctr *Connector) describe(l *link) []any {
	now := ctr.clock.Now()
	return []any{
		slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(l.threadID())),
		slog.Duration("age", now-l.born), slog.Duration("last_answer", now-l.lastRoundTrip),
	}
}

func (c *conn) written() uint64 {
	if c.wire == nil {
		return 0
	}
	return c.wire.Written
}

// isBroken says whether the link was lost or closed. The driver's IsValid does not
// tell that from a result that is still being read; that of another driver says
// only that the connection is not to be kept.
func (c *conn) isBroken() bool {
	if c.wire == nil {
		return c.ctr.IsMySQL && !c.driverConn.IsValid()
	}
	return c.wire.IOErr != nil || c.wire.Closed.Load()
}

// deferredCheckout makes up for the checkout that a connection did not get.
func (c *conn) deferredCheckout(ctx context.Context) error {
	c.acquire(ctx)
	c.trackCheckout("")
	c.needsCheck = false
	mode := c.ctr.Cfg.PrePing
	if mode == pingAlways && !c.answeredEver {
		mode = pingIdle // the handshake was the ping, unless it was long ago
	}
	if c.unconnected {
		return c.reconnect(ctx, ByDriver)
	}
	switch v := c.check(ctx, mode); {
	case v == keep && !c.needsCheck:
		return nil
	case ctx.Err() != nil:
		return ctx.Err() // and the check is still owed
	default:
		return c.reconnect(ctx, v)
	}
}

// isWrapperSetup says whether the request comes from a connector that wraps this
// one and sets up the connection in its Connect: its first user is yet to come.
func (ctr *Connector) isWrapperSetup() bool {
	if ctr.maintainer != nil {
		return false
	}
	caller := callerInSQL()
	return caller == sqlOpener || caller == sqlConn
}

// reconnect opens another link in place of the one that is gone. It must not be
// called once the caller may have state on the connection. Without a Pool above
// it that may be of a connector that wraps this one: then only database/sql
// opens another, through all of them.
func (c *conn) reconnect(ctx context.Context, v Verdict) error {
	if c.ctr.maintainer == nil && c.everConnected {
		err := c.newBadConnError(errors.New(v.String()), "before anything was sent")
		c.discard(v)
		return err
	}
	c.discard(v)
	l, checked, err := c.ctr.takeOrDial(ctx)
	if err != nil {
		return err
	}
	c.attach(l)
	if !checked {
		return c.deferredCheckout(ctx)
	}
	return nil
}

// detach takes the link away and leaves a shell, whose next use opens another.
func (c *conn) detach() link {
	l := c.link
	c.link, c.unconnected, c.needsCheck = link{}, true, true
	c.hasLink.Store(false)
	c.currentWire.Store(nil)
	return l
}

func (c *conn) attach(l link) {
	c.link, c.unconnected, c.needsCheck, c.everConnected = l, false, false, true
	c.hasLink.Store(true)
	c.ctr.noteActivity()
	c.currentWire.Store(l.serverSide)
}
