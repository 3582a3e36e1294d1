// conn.go wraps each connection of the driver: what it is, who has it, when it
// last proved itself, and the requests on it. Whether it is alive is ping.go's
// and recycle.go's affair, what follows from a failure failure.go's.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"
)

// conn is the driver.Conn that database/sql holds. database/sql uses it from
// one goroutine at a time (it holds its lock around every call).
type conn struct {
	ctr *connector
	occupancy
	link

	// unchecked: handed out, or about to be, without a look. database/sql does
	// not reset a connection before its first use, which may be long after its
	// birth: opened for a waiter who then gave up, it is parked and handed out
	// later as it is. So a connection is born unchecked.
	unchecked bool
	// used: something ran since the last checkout. As long as nothing has, no
	// state of the caller's is on it, and a dead link can be replaced in place.
	used bool
	// spoke: a statement was answered since the last checkout.
	spoke bool
	// hurried: it was not pinged for want of the caller's time.
	hurried bool
	// lent: the driver's own connection was given to its owner, who may be using
	// it at any time until he returns it.
	lent bool
	// results is how many are open; on a driver's connection that livepool cannot
	// ping, only those inside transactions are counted.
	results int
	// entered is when the last request was begun, or a little earlier.
	entered time.Duration
	// dead: its server has given it up, or is no good; it is closed when it is
	// returned.
	dead bool
	// stained: something was left on it that the next borrower must not see.
	// Only its borrower writes it.
	stained bool
	// shell: it has no link: its first user is to open one, or the one it had
	// was closed and there is no other yet.
	shell bool
	// offered: its link is for those who wait because the server is full, as soon
	// as database/sql, which closes the connection, has closed its statements on
	// it: nobody else knows them.
	offered bool
	// opened: it has, or has had, a link.
	opened bool
	// unconverted: arguments were let through while there was no driver to
	// convert them.
	unconverted bool

	spare bool          // database/sql does not have it yet
	since time.Duration // it is idle

	// What others may know while somebody uses it.
	linked atomic.Bool // it has a link
	// suspected: it is idle and being asked whether it is alive; until then it is
	// not ready for anybody.
	suspected atomic.Bool
	watched   atomic.Pointer[site]    // the link's
	held      atomic.Pointer[holding] // by whom, if LeakAfter asks for it
	reused    atomic.Int64            // checkouts after the first

	transaction transaction

	tx     tx
	slot   stmt        // the one open statement that most callers have at a time
	result watchedRows // and the one open result
}

// link is one connection to the server.
type link struct {
	serial     int64 // no two of a pool's are the same
	inner      inner
	wire       *wire // nil where livepool's dialer was not used
	site       *site // and nil until it has logged in
	born       time.Duration
	expires    time.Duration
	proved     time.Duration // when the last round trip completed
	generation uint64
	prepared   int           // statements that are open on it
	worked     bool          // a statement was answered on it
	mourned    bool          // its death has been told
	believed   time.Duration // when its refusal of a statement was taken for the truth; -1: never
	facts      *serverFacts  // of its server, nil if it does not say
	keepsKeys  bool          // its server's commit table was checked, see checkCommitTable
	keepAlive  time.Duration // how often it is pinged while it is idle, 0 for never
	trust      time.Duration // how long a completed round trip stands for a ping
}

// prove notes a completed round trip, a little early rather than late.
func (c *conn) prove() {
	earliest, _ := c.ctr.clock.bounds()
	c.proved = max(c.proved, earliest)
}

// answered notes a statement that was answered.
func (c *conn) answered() {
	c.prove()
	c.worked, c.spoke = true, true
}

// threadID is the server's id for the connection, 0 when it is not known.
func (l *link) threadID() uint32 {
	if l.wire == nil {
		return 0
	}
	return l.wire.hello.threadID
}

// close never waits for a peer that takes no more bytes.
func (l *link) close() error {
	if l.inner.Conn == nil {
		return nil
	}
	if l.wire != nil {
		l.wire.SetWriteDeadline(time.Now().Add(time.Second))
	}
	return l.inner.Close()
}

// Raw returns the driver's own connection, for what only that can do. It
// belongs inside sql.Conn.Raw, whose function gets the wrapped one. It is nil
// if the connection could not be opened. What it is used for is not seen, so that
// a connection of the MySQL driver is closed when it is returned.
func (c *conn) Raw() driver.Conn {
	if _, err := c.enter(context.Background(), "", 0); err != nil {
		return nil
	}
	c.stained = c.stained || c.ctr.mysql
	c.lent = true
	return c.inner.Conn
}

// ResetSession is a checkout. Whatever it finds wrong it reports as
// driver.ErrBadConn: database/sql ignores any other error here, and hands the
// dead connection out. But a session keeps the connection as a shell, to be
// filled when its transaction begins: given back, it could go to someone else,
// and the session wait again, with nothing to bound that.
func (c *conn) ResetSession(ctx context.Context) error {
	session := servesSession(ctx)
	c.claim(ctx)
	// One whose link was left to who asks about it gets another at its first use.
	c.used, c.spoke, c.unchecked, c.hurried, c.lent = false, false, c.shell, false, false
	if !c.shell {
		v := c.check(ctx, c.ctr.cfg.PrePing)
		if v == keep {
			c.reused.Add(1)
			c.holds("")
			c.rest()
			return nil
		}
		c.giveUp(v)
	}
	if !session {
		return driver.ErrBadConn
	}
	return nil
}

// giveUp takes the link away from a connection that is not handed out. A suspect
// one is asked in the background, and kept if it answers.
func (c *conn) giveUp(v verdict) {
	l := c.detach()
	if v == bySilence && c.ctr.ask(l) {
		return
	}
	c.ctr.discarded(&l, v)
	l.close()
}

// IsValid is a return: false closes the connection. The time of the last round
// trip serves as now, which spares reading the clock.
func (c *conn) IsValid() bool {
	if !held(c.state.Load()) {
		return true // returned by a waiter who had got it but gave up before the checkout
	}
	_ = c.resumeToEnd() // what fails here makes it a dead one
	c.lets()
	switch {
	case c.dead, c.shell:
		return false
	case !c.inner.IsValid():
		c.mourn(nil)
		c.abandoned()
		return false
	case c.stained:
		c.releaseLocks()
		return false
	}
	if v := c.retired(c.ctr, c.proved); v != keep {
		c.ctr.discarded(&c.link, v)
		return false
	}
	c.since = c.proved
	if c.ctr.outage.full.Load() {
		c.offered = true
		return false
	}
	c.state.Store(idle)
	return true
}

// offer gives a link to those who wait because the server takes no more
// connections. database/sql would let them wait beside it.
func (ctr *connector) offer(l link) {
	ctr.addSpare(l)
	select {
	case ctr.outage.offered <- struct{}{}:
	default: // more are offered than are taken
	}
}

// releaseLocks gives back the named locks of a borrower at once: after the
// connection is closed the server keeps them for as long as it takes to notice.
func (c *conn) releaseLocks() {
	if !c.ctr.mysql {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.ctr.cfg.PingTimeout)
	defer cancel()
	_, _ = c.inner.ExecContext(ctx, "DO RELEASE_ALL_LOCKS()", nil)
}

// Close closes the connection to the server. If it is being visited, that is
// the visitor's to do.
func (c *conn) Close() error {
	c.ctr.forget(c)
	c.mu.Lock()
	wasIdle := c.state.Load() == idle
	l := c.detach()
	c.gone = true
	if c.visit != nil {
		c.visit, l = nil, link{}
	}
	c.mu.Unlock()
	if c.offered && l.prepared == 0 && l.inner.Conn != nil {
		c.ctr.offer(l)
		return nil
	}
	if wasIdle && c.ctr.keepsReady(l, c.since) {
		return nil
	}
	return l.close()
}

// discarded counts a link that is given up, and logs it. One that was taken from
// a caller who gave up is counted then.
func (ctr *connector) discarded(l *link, v verdict) {
	if l.inner.Conn == nil {
		return
	}
	ctr.stats.discards[v].Add(1)
	if ctr.cfg.Log.Enabled(context.Background(), slog.LevelDebug) {
		ctr.cfg.Log.Debug("livepool: connection discarded", append(ctr.describe(l), slog.String("why", v.String()))...)
	}
}

// describe says which connection, for a log.
func (ctr *connector) describe(l *link) []any {
	now := ctr.clock.now()
	return []any{
		slog.String("addr", ctr.addr), slog.Uint64("thread_id", uint64(l.threadID())),
		slog.Duration("age", now-l.born), slog.Duration("last_answer", now-l.proved),
	}
}

func (c *conn) written() uint64 {
	if c.wire == nil {
		return 0
	}
	return c.wire.written
}

// isGone says whether the link was lost or closed. The driver's IsValid does not
// tell that from a result that is still being read; that of another driver says
// only that the connection is not to be kept.
func (c *conn) isGone() bool {
	if c.wire == nil {
		return c.ctr.mysql && !c.inner.IsValid()
	}
	return c.wire.broken != nil || c.wire.closed.Load()
}

// firstUse makes up for the checkout that a connection did not get.
func (c *conn) firstUse(ctx context.Context) error {
	c.claim(ctx)
	c.holds("")
	c.unchecked = false
	mode := c.ctr.cfg.PrePing
	if mode == pingAlways && !c.worked {
		mode = pingIdle // the handshake was the ping, unless it was long ago
	}
	if c.shell {
		return c.renew(ctx, byDriver)
	}
	switch v := c.check(ctx, mode); {
	case v == keep && !c.unchecked:
		return nil
	case ctx.Err() != nil:
		return ctx.Err() // and the check is still owed
	default:
		return c.renew(ctx, v)
	}
}

// wrappedSetup says whether the request comes from a connector that wraps this
// one and sets up the connection in its Connect: its first user is yet to come.
func (ctr *connector) wrappedSetup() bool {
	if ctr.maintainer != nil {
		return false
	}
	caller := callerInSQL()
	return caller == sqlOpener || caller == sqlConn
}

// renew opens another link in place of the one that is gone. It must not be
// called once the caller may have state on the connection. Without a Pool above
// it that may be of a connector that wraps this one: then only database/sql
// opens another, through all of them.
func (c *conn) renew(ctx context.Context, v verdict) error {
	if c.ctr.maintainer == nil && c.opened {
		err := c.lost(errors.New(v.String()), "before anything was sent")
		c.giveUp(v)
		return err
	}
	c.giveUp(v)
	l, checked, err := c.ctr.obtain(ctx)
	if err != nil {
		return err
	}
	c.fill(l)
	if !checked {
		return c.firstUse(ctx)
	}
	return nil
}

// detach takes the link away and leaves a shell, whose next use opens another.
func (c *conn) detach() link {
	l := c.link
	c.link, c.shell, c.unchecked = link{}, true, true
	c.linked.Store(false)
	c.watched.Store(nil)
	return l
}

func (c *conn) fill(l link) {
	c.link, c.shell, c.unchecked, c.opened = l, false, false, true
	c.linked.Store(true)
	c.ctr.wakes()
	c.watched.Store(l.site)
}
