// conn.go is a connection as database/sql sees it: its state, its checkout and its
// return. ping.go and recycle.go decide whether it may be handed out, request.go has the
// requests on it, failure.go what follows from a failure.

package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/proclist"
	"github.com/livepool/livepool/internal/wire"
	"github.com/livepool/livepool/trace"
)

// conn is the driver.Conn that database/sql holds. database/sql holds its lock around
// every call, so one goroutine at a time uses it. That goroutine writes all fields that
// are not atomic; for the link see slot.
type conn struct {
	ctr *Connector
	slot
	link

	// needsCheck: the next request must check it first. database/sql does not reset a
	// connection before its first use, which may come late: it keeps a connection that it
	// opened for a waiter that gave up, and hands it out later unchecked. So a new
	// connection needs a check.
	needsCheck bool
	// used: a request ran since the last checkout. Before that it has no state of the
	// caller's, and a dead link can be replaced in place.
	used bool
	// answeredSinceCheckout: a statement was answered since the last checkout.
	answeredSinceCheckout bool
	// pingSkipped: its ping was skipped, because the caller's deadline left no time for it.
	pingSkipped bool
	// rawExposed: Raw returned the driver's connection, which the owner may use at any time
	// until it returns the conn.
	rawExposed bool
	// openResults is how many results are open. On a connection of a driver that livepool
	// cannot ping, only those inside transactions are counted.
	openResults int
	// requestStarted is when the last request began, or a little earlier.
	requestStarted time.Duration
	// dead: it must not be used again; it is closed when it is returned.
	dead bool
	// failedEnd is why the end of its transaction failed, which may still be open: nothing
	// more is sent, or it would belong to that. nil for none.
	failedEnd error
	// openTxs is how many transactions database/sql has open on it: several, if they are begun
	// inside of each other on a sql.Conn.
	openTxs int
	// dirty: session state was left on it that the next user must not see; it is closed
	// when it is returned.
	dirty bool
	// unconnected: it has no link now; the next request opens one.
	unconnected bool
	// handOverOnClose: when database/sql closes it, its link goes to a caller that waits
	// because the server has no more connections. Not earlier: database/sql closes the
	// statements on it first, which nobody else knows.
	handOverOnClose bool
	// everConnected: it has, or has had, a link.
	everConnected bool
	// argsDeferred: arguments were passed unconverted, because there was no link whose
	// driver converts them.
	argsDeferred bool

	spare     bool          // database/sql does not have it yet: it keeps a spare link
	idleSince time.Duration // when its last round trip was, if it is idle

	// Other goroutines may read these at any time.
	hasLink atomic.Bool // attach and detach write it
	// rechecking: it is idle and being pinged; until that ends it is not ready for use.
	rechecking    atomic.Bool
	currentThread atomic.Pointer[proclist.Thread] // of its link; attach and detach write it
	currentServer atomic.Pointer[string]          // likewise: its link's server
	checkout      atomic.Pointer[checkout]        // who has it, if LeakAfter is set
	reuses        atomic.Int64                    // checkouts after the first

	transaction transaction

	// unitsInARow is how many units it has served since its last plain use, awaitUnits how
	// many of them it takes to turn autocommit off.
	unitsInARow, awaitUnits int

	tx         tx
	begun      begunTx
	inlineStmt stmt        // the first open statement: most callers have one at a time
	inlineRows wrappedRows // and the first open result
}

// link is one connection to the server. Whoever has it, by conn or reservation, writes it.
type link struct {
	host             *host // to which it leads; nil for no link
	serial           int64 // unique in the pool
	driverConn       driverconn.Conn
	wire             *wire.Conn       // nil where livepool's dialer is not in use
	thread           *proclist.Thread // also nil until afterLogin
	born             time.Duration
	expires          time.Duration
	lastRoundTrip    time.Duration // when the last round trip completed
	generation       uint64
	isStopgap        bool          // its host is the second choice
	openStmts        int           // statements that are open on it
	answeredEver     bool          // a statement was answered on it
	lossReported     bool          // its loss was reported
	refusalTrustedAt time.Duration // when a refusal of its server was last trusted; -1: never
	facts            *serverFacts  // of its server, nil if they are not known
	early            *earlyFacts   // asked before the link was initialized, nil after that
	server           *string       // the name of its server for Attempt.Server, nil until afterLogin
	autocommitOff    bool          // a statement outside a transaction would begin one
	commitTableOK    bool          // its server's commit table was checked, see checkCommitTable
	keepAlive        time.Duration // how often it is pinged while it is idle; 0: never
	pingAfter        time.Duration // for how long after a round trip no ping is needed
}

// touch records a completed round trip, as a little earlier than it was.
func (c *conn) touch() {
	c.lastRoundTrip = max(c.lastRoundTrip, c.ctr.clock.Earliest())
}

// recordAnswer records that a statement was answered.
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

// close does not wait for a peer that accepts no more bytes.
func (l *link) close() error {
	if l.driverConn.Conn == nil {
		return nil
	}
	if l.wire != nil {
		l.wire.SetWriteDeadline(time.Now().Add(time.Second))
	}
	return l.driverConn.Close()
}

// Raw returns the driver's own connection, for what only that can do. It is called
// inside sql.Conn.Raw, whose function gets the wrapped one. It returns nil if the
// connection could not be opened. livepool does not see what is done with it, so a
// connection of the MySQL driver is closed when it is returned.
func (c *conn) Raw() driver.Conn {
	if _, err := c.beginRequest(context.Background(), "", 0); err != nil {
		return nil
	}
	c.dirty = c.dirty || c.ctr.IsMySQL
	c.rawExposed = true
	return c.driverConn.Conn
}

// ResetSession is a checkout. It reports every fault as driver.ErrBadConn, because
// database/sql ignores any other error here and would hand out the dead connection. A
// session however keeps the conn without a link, and its BEGIN opens one: if it returned
// the conn, another caller could get it, and the session would wait again, without any
// bound.
func (c *conn) ResetSession(ctx context.Context) error {
	session := noteSessionServed(ctx)
	c.acquire(ctx)
	// A conn whose link stays with a background ping gets another link at its first use.
	c.used, c.answeredSinceCheckout, c.needsCheck, c.pingSkipped, c.rawExposed = false, false, c.unconnected, false, false
	if !session {
		c.unitsInARow = 0
	}
	if !c.unconnected {
		v := c.check(ctx, c.ctr.Cfg.PrePing)
		if v == keep || v == postponed {
			c.needsCheck = v == postponed || !session && c.ctr.checkContext(ctx) != nil // which the first request returns
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

// checkContext is Settings.CheckContext, which needs no call for most contexts.
func (ctr *Connector) checkContext(ctx context.Context) error {
	if ctr.Cfg.CheckContext == nil || ctx == context.Background() && !ctr.Draining.Load() {
		return nil
	}
	return ctr.Cfg.CheckContext(ctx)
}

// discard removes the link of a conn that is not handed out. A suspect is pinged in the
// background, and kept as a spare if it answers.
func (c *conn) discard(v Verdict) {
	l := c.detach()
	if v == BySilence && c.ctr.recheck(l) {
		return
	}
	c.ctr.recordDiscard(&l, v)
	l.close()
}

// IsValid is a return: false has database/sql close the connection. It takes the time of
// the last round trip for the present, so as not to read the clock.
func (c *conn) IsValid() bool {
	if !isCheckedOut(c.state.Load()) {
		return true // its caller got it, but gave up before the checkout
	}
	_ = c.resumeBounded() // a failure sets dead
	c.untrackCheckout()
	switch {
	case c.dead, c.unconnected, c.openResults > 0 && c.ctr.IsMySQL: // which a function of sql.Conn.Raw may have left
		return false
	case !c.driverConn.IsValid(), c.wasCut():
		c.reportLoss(nil)
		c.abandon()
		return false
	case c.dirty:
		c.releaseLocks()
		return false
	}
	if v := c.retirement(c.lastRoundTrip); v != keep {
		c.ctr.recordDiscard(&c.link, v)
		return false
	}
	c.idleSince = c.lastRoundTrip
	if c.ctr.Outage.WantsRoom() {
		c.handOverOnClose = true
		return false
	}
	c.state.Store(idle)
	return true
}

// handOver gives a link to a caller that waits because the server has no more
// connections. database/sql would keep the link idle while that caller waits.
func (ctr *Connector) handOver(l link) {
	ctr.addSpare(l)
	ctr.Outage.Offer()
}

// releaseLocks releases the named locks of the last user at once. After the close the
// server would keep them until it notices.
func (c *conn) releaseLocks() {
	if !c.ctr.IsMySQL {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.Cfg.PingTimeout)
	defer cancel()
	_, _ = c.driverConn.ExecContext(ctx, "DO RELEASE_ALL_LOCKS()", nil)
}

// Close closes the connection to the server. A reserved link is closed by whoever holds
// the reservation.
func (c *conn) Close() error {
	switch { // what is deferred comes when the link is closed, so that there are never more than the limit
	case c.ctr.maintainer.takesPlaceOf(c):
		defer c.ctr.maintainer.openInPlace()
	case !c.dirty:
		c.ctr.forget(c)
	default:
		defer c.ctr.forget(c)
	}
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

// recordDiscard counts a link that is discarded, and logs it. A link that was abandoned
// is counted there.
func (ctr *Connector) recordDiscard(l *link, v Verdict) {
	if l.driverConn.Conn == nil {
		return
	}
	ctr.Stats.Discards[v].Add(1)
	if ctr.Tracer.HasEvents() {
		ctr.Tracer.backgroundEvent(trace.Discard{Conn: ctr.traced(l), Why: v.String()})
	}
	if ctr.Cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		ctr.Cfg.Log.Debug("livepool: connection discarded", append(ctr.describe(l), slog.String("why", v.String()))...)
	}
}

// describe identifies a connection, for a log.
func (ctr *Connector) describe(l *link) []any {
	now := ctr.clock.Now()
	return []any{
		slog.String("addr", ctr.addrOf(l)), slog.Uint64("thread_id", uint64(l.threadID())),
		slog.Duration("age", now-l.born), slog.Duration("last_answer", now-l.lastRoundTrip),
	}
}

// written is how many bytes were written on the link so far, 0 if that is not known.
func (c *conn) written() uint64 {
	if c.wire == nil {
		return 0
	}
	return c.wire.Written
}

// isBroken says whether the link was lost or closed. The driver's IsValid is also false
// while a result is being read, and that of another driver says only that the connection
// must not be kept.
func (c *conn) isBroken() bool {
	if c.wire == nil {
		return c.ctr.IsMySQL && !c.driverConn.IsValid()
	}
	return c.wire.IOErr != nil || c.wire.Cut || c.wire.Closed.Load()
}

// wasCut says whether the end of a context has closed the connection, which the driver may
// not have noticed; or whether a statement was left by a panic, whose context is watched
// still.
func (c *conn) wasCut() bool {
	if c.wire.IsWatching() {
		_ = c.wire.Unwatch()
		return true
	}
	return c.wire != nil && c.wire.Cut
}

// deferredCheckout checks a conn that was handed out without a checkout.
func (c *conn) deferredCheckout(ctx context.Context) error {
	if err := c.ctr.checkContext(ctx); err != nil {
		return err
	}
	c.acquire(ctx)
	c.trackCheckout("")
	c.needsCheck = false
	mode := c.ctr.Cfg.PrePing
	if mode == pingAlways && !c.answeredEver {
		mode = pingIdle // the handshake counts as a ping, unless it was long ago
	}
	if c.unconnected {
		return c.reconnect(ctx, ByDriver)
	}
	switch v := c.check(ctx, mode); {
	case v == keep:
		return nil
	case ctx.Err() != nil:
		c.needsCheck = true
		return ctx.Err()
	default:
		return c.reconnect(ctx, v)
	}
}

// isWrapperSetup says whether the request comes from the Connect of a connector that
// wraps this one and sets up the connection: no user has it yet.
func (ctr *Connector) isWrapperSetup() bool {
	if ctr.maintainer != nil {
		return false
	}
	caller := callerInSQL()
	return caller == sqlOpener || caller == sqlConn
}

// reconnect opens another link in place of the one that is lost. It must not be called
// when the caller may have state on the connection. Without a Pool a connector that
// wraps this one may have set up the connection: then database/sql has to open another,
// through all of them.
func (c *conn) reconnect(ctx context.Context, v Verdict) error {
	if c.ctr.maintainer == nil && c.everConnected {
		err := c.newBadConnError(errors.New(v.String()), "before anything was sent")
		c.discard(v)
		return err
	}
	c.discard(v)
	l, isNew, err := c.ctr.takeOrDial(ctx)
	if err != nil {
		return err
	}
	c.attach(l)
	if !isNew { // a spare, which is checked; each one is taken once, so that this ends
		return c.deferredCheckout(ctx)
	}
	return nil
}

// detach removes the link; the next use of the conn opens another.
func (c *conn) detach() link {
	l := c.link
	c.link, c.unconnected, c.needsCheck = link{}, true, true
	c.hasLink.Store(false)
	c.currentThread.Store(nil)
	c.currentServer.Store(nil)
	return l
}

// attach gives the conn a link.
func (c *conn) attach(l link) {
	c.link, c.unconnected, c.needsCheck, c.everConnected = l, false, false, true
	c.hasLink.Store(true)
	c.ctr.noteActivity()
	c.currentThread.Store(l.thread)
	c.currentServer.Store(l.server)
}
