// conn.go wraps each connection of the driver: what it is, when it last proved
// itself, and what a failure on it means for database/sql. Whether it is alive
// is ping.go's and recycle.go's affair; what an error means is errors.go's.

package livepool

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-sql-driver/mysql"
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
	// dead: its server has given it up, or is no good; it is closed when it is
	// returned.
	dead bool
	// shell: it has no link: its first user is to open one, or the one it had
	// was closed and there is no other yet.
	shell bool
	// unconverted: arguments were let through while there was no driver to
	// convert them.
	unconverted bool
	inTx        bool

	tx   tx
	slot stmt // the one open statement that most callers have at a time
}

// link is one connection to the server.
type link struct {
	serial     int64 // no two of a pool's are the same
	inner      inner
	wire       *wire // nil where livepool's dialer was not used
	born       time.Duration
	expires    time.Duration
	proved     time.Duration // when the last round trip completed
	generation uint64
	worked     bool          // a statement was answered on it
	believed   time.Duration // when its refusal of a statement was taken for the truth; -1: never
}

// prove notes a completed round trip.
func (c *conn) prove() { c.proved = c.ctr.now() }

// answered notes a statement that was answered.
func (c *conn) answered() {
	c.prove()
	c.worked = true
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
// if the connection could not be opened.
func (c *conn) Raw() driver.Conn {
	if _, err := c.enter(context.Background()); err != nil {
		return nil
	}
	return c.inner.Conn
}

// ResetSession is a checkout. Whatever it finds wrong it reports as
// driver.ErrBadConn: database/sql ignores any other error here, and hands the
// dead connection out.
func (c *conn) ResetSession(ctx context.Context) error {
	c.claim()
	c.used = false
	c.unchecked = false
	if c.shell {
		return driver.ErrBadConn
	}
	if v := c.check(ctx, c.ctr.cfg.PrePing); v != keep {
		c.discarded(v)
		return driver.ErrBadConn
	}
	return nil
}

// IsValid is a return: false closes the connection. The time of the last round
// trip serves as now, which spares reading the clock.
func (c *conn) IsValid() bool {
	switch {
	case c.dead, c.shell:
		return false
	case !c.inner.IsValid():
		c.mourn(nil)
		return false
	}
	if v := c.retired(c.ctr, c.proved); v != keep {
		c.discarded(v)
		return false
	}
	c.state.Store(idle)
	return true
}

// Close closes the connection to the server.
func (c *conn) Close() error {
	c.ctr.mu.Lock()
	delete(c.ctr.conns, c)
	c.ctr.mu.Unlock()
	c.visit.Lock()
	defer c.visit.Unlock()
	c.gone = true
	return c.link.close()
}

func (c *conn) discarded(v verdict) {
	c.ctr.stats.discards[v].Add(1)
	if c.ctr.cfg.logger().Enabled(context.Background(), slog.LevelDebug) {
		c.ctr.cfg.logger().Debug("livepool: connection discarded", append(c.describe(), slog.String("why", v.String()))...)
	}
}

// describe says which connection, for a log.
func (c *conn) describe() []any {
	now := c.ctr.now()
	return []any{
		slog.String("addr", c.ctr.addr), slog.Uint64("thread_id", uint64(c.threadID())),
		slog.Duration("age", now-c.born), slog.Duration("last_answer", now-c.proved),
	}
}

// enter comes before anything that is sent. It returns how many bytes had been
// written by then, by which a failure tells whether anything was sent.
func (c *conn) enter(ctx context.Context) (mark uint64, err error) {
	if c.unchecked {
		if err := c.firstUse(ctx); err != nil {
			return 0, err
		}
	}
	c.used = true
	if c.wire != nil {
		mark = c.wire.written
	}
	return mark, nil
}

// firstUse makes up for the checkout that a connection did not get.
func (c *conn) firstUse(ctx context.Context) error {
	c.unchecked = false
	mode := c.ctr.cfg.PrePing
	if mode == PrePingAlways && !c.worked {
		mode = PrePingIdle // the handshake was the ping, unless it was long ago
	}
	if c.shell {
		return c.renew(ctx)
	}
	switch v := c.check(ctx, mode); v {
	case keep:
		return nil
	case byCaller:
		c.discarded(v)
		c.empty()
		return ctx.Err()
	default:
		c.discarded(v)
		return c.renew(ctx)
	}
}

// renew opens another link in place of the one that is gone. It must not be
// called once the caller may have state on the connection.
func (c *conn) renew(ctx context.Context) error {
	c.empty()
	l, err := c.ctr.dial(ctx)
	if err != nil {
		return err
	}
	c.fill(l)
	return nil
}

// empty closes the link and leaves a shell, whose next use opens another.
func (c *conn) empty() {
	c.link.close()
	c.link, c.shell, c.unchecked = link{}, true, true
}

func (c *conn) fill(l link) { c.link, c.shell, c.unchecked = l, false, false }

// effect is what a request leaves behind, which decides whether it may be sent
// again when its answer was lost.
type effect int

const (
	effectUnknown effect = iota // a statement: it may have done anything
	effectNone                  // PREPARE, BEGIN, a ping: gone with the connection
)

// failed turns what the driver says into what database/sql shall do, and
// spreads the news of a death. It returns an error that is driver.ErrBadConn,
// on which database/sql sends the request again on another connection, only if
// the request cannot have run, or may run twice, and no transaction is open.
func (c *conn) failed(ctx context.Context, err error, query string, mark uint64, has effect) error {
	if err == driver.ErrSkip {
		return err
	}
	var my *mysql.MySQLError
	if errors.As(err, &my) {
		c.prove() // an answer is a proof of life, whatever it says
		return c.refused(my, err, query, has)
	}
	badConn := errors.Is(err, driver.ErrBadConn)
	if !badConn && (ctx.Err() != nil || c.inner.IsValid() && c.ctr.classify(err)&ConnDead == 0) {
		return err // the caller's own context, or an error of the driver's that the connection survives
	}
	c.mourn(err)
	nothingSent := badConn || c.wire != nil && c.wire.written == mark
	if c.inTx || !nothingSent && has != effectNone && !isIdempotent(ctx) {
		return err
	}
	return c.lost(err, "before the statement ran")
}

// refused looks at a server's error: after a refusal that another connection
// may not meet, and after 4031, the statement has not run.
func (c *conn) refused(my *mysql.MySQLError, err error, query string, has effect) error {
	class := c.ctr.classify(err)
	if class&ConnDead != 0 {
		c.dead = true
		c.ctr.died(c, c.proved, hungUp, err)
	}
	switch {
	case class&NotRun == 0 || c.inTx:
		return err
	case class&Elsewhere == 0:
		return c.lost(err, "before it read the statement")
	case c.ctr.multiStatements, has != effectNone && !singleStatement(query):
		return err // an earlier part of it may have run
	case c.believes():
		return err
	}
	c.dead = true
	return c.lost(err, "because its server refuses the statement")
}

// believes says whether the connection's server can be taken at its word when
// it refuses a statement (read-only, not ready). One that has worked before may
// have stayed with a server that was demoted since; the statement is then sent
// again until it meets a fresh connection, which tells the truth. Asked again
// within a second it is still believed, so that a program that goes on writing
// to a read-only server does not reconnect each time.
func (c *conn) believes() bool {
	if c.worked && (c.believed < 0 || c.proved-c.believed > time.Second) {
		return false
	}
	if !c.worked {
		c.worked, c.believed = true, c.proved
	}
	return true
}

// mourn spreads the news of a loss, if it was one. err is what the driver says
// of it, nil if it has not said anything.
func (c *conn) mourn(err error) {
	if c.wire != nil {
		err = c.wire.broken
	}
	if err == nil {
		return
	}
	if how := howLost(err); how != notLost {
		c.ctr.died(c, c.ctr.now(), how, err)
	}
}

// cause is what the socket said where the driver only says that the connection
// is bad.
func (c *conn) cause(err error) error {
	if c.wire != nil && c.wire.broken != nil {
		return c.wire.broken
	}
	return err
}

// lostError is driver.ErrBadConn with its story, for the caller who gets it in
// the end because every try met the same.
type lostError struct {
	addr     string
	threadID uint32
	age      time.Duration
	silence  time.Duration
	when     string
	cause    error
}

func (c *conn) lost(err error, when string) error {
	now := c.ctr.now()
	c.ctr.stats.resent.Add(1)
	return &lostError{c.ctr.addr, c.threadID(), now - c.born, now - c.proved, when, c.cause(err)}
}

func (e *lostError) Error() string {
	return fmt.Sprintf("livepool: connection %d to %s, %s old and %s after its last answer, was given up %s: %v",
		e.threadID, e.addr, e.age.Round(time.Millisecond), e.silence.Round(time.Millisecond), e.when, e.cause)
}

func (e *lostError) Is(target error) bool { return target == driver.ErrBadConn }
func (e *lostError) Unwrap() error        { return e.cause }

// The requests. Each one enters, asks the driver, and notes the answer.

// CheckNamedValue forwards to the driver. As long as there is none, it lets the
// arguments through to where there is one; it has no context to open one with.
func (c *conn) CheckNamedValue(nv *driver.NamedValue) error {
	if c.shell {
		c.unconverted = true
		return nil
	}
	return c.inner.CheckNamedValue(nv)
}

// convert makes up for it, as database/sql would have done.
func (c *conn) convert(args []driver.NamedValue) error {
	if !c.unconverted {
		return nil
	}
	c.unconverted = false
	for i := range args {
		err := c.inner.CheckNamedValue(&args[i])
		if err == driver.ErrSkip {
			args[i].Value, err = driver.DefaultParameterConverter.ConvertValue(args[i].Value)
		}
		if err != nil {
			return fmt.Errorf("sql: converting argument $%d type: %w", args[i].Ordinal, err)
		}
	}
	return nil
}

// ExecContext forwards to the driver.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	mark, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.convert(args); err != nil {
		return nil, err
	}
	res, err := c.inner.ExecContext(ctx, query, args)
	if err != nil {
		return nil, c.failed(ctx, err, query, mark, effectUnknown)
	}
	c.answered()
	return res, nil
}

// QueryContext forwards to the driver.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	mark, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.convert(args); err != nil {
		return nil, err
	}
	rows, err := c.inner.QueryContext(ctx, query, args)
	if err != nil {
		return nil, c.failed(ctx, err, query, mark, effectUnknown)
	}
	c.answered()
	return rows, nil
}

// Prepare is what database/sql uses of a driver without contexts.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext forwards to the driver. A lost PREPARE has no effect.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	mark, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	s, err := c.inner.PrepareContext(ctx, query)
	if err != nil {
		return nil, c.failed(ctx, err, query, mark, effectNone)
	}
	c.prove()
	return c.wrapStmt(s, query), nil
}

// Begin is what database/sql uses of a driver without contexts.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx forwards to the driver. A lost BEGIN has no effect.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	mark, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	inner, err := c.inner.BeginTx(ctx, opts)
	if err != nil {
		return nil, c.failed(ctx, err, "BEGIN", mark, effectNone)
	}
	c.prove()
	c.inTx = true
	c.tx = tx{c: c, inner: inner}
	return &c.tx, nil
}

// Ping is the ping a caller asks for. As long as nothing has run since the
// checkout it verifies a connection "establishing one if necessary", as
// sql.DB.Ping promises, but database/sql does not send a ping again.
func (c *conn) Ping(ctx context.Context) error {
	fresh := !c.used
	mark, err := c.enter(ctx)
	if err != nil {
		return err
	}
	if !fresh {
		if err := c.inner.Ping(ctx); err != nil {
			return c.failed(ctx, err, "ping", mark, effectNone)
		}
		c.prove()
		return nil
	}
	c.used = false
	switch v := c.prePing(ctx, c.ctr.now()); {
	case v == keep && !c.unchecked:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		c.discarded(v)
		return c.renew(ctx)
	}
}

// tx wraps the one transaction that a connection has at a time; it lives in
// its conn, so that it costs no allocation.
type tx struct {
	c     *conn
	inner driver.Tx
}

// Commit forwards to the driver. It is never sent again.
func (t *tx) Commit() error {
	err := t.inner.Commit()
	t.c.ended(err)
	return err
}

// Rollback forwards to the driver.
func (t *tx) Rollback() error {
	err := t.inner.Rollback()
	t.c.ended(err)
	return err
}

// ended notes the end of the transaction. An error stays as the driver has it.
func (c *conn) ended(err error) {
	if err == nil {
		c.prove()
	} else {
		_ = c.failed(context.Background(), err, "", 0, effectUnknown)
	}
	c.inTx = false
}

// stmt wraps a prepared statement.
type stmt struct {
	c     *conn
	inner driver.Stmt
	query string
	on    int64 // the serial of the link it was prepared on
}

// wrapStmt uses the conn's own slot for the first open statement: a query with
// arguments is prepared, executed and closed each time.
func (c *conn) wrapStmt(s driver.Stmt, query string) *stmt {
	wrapped := &c.slot
	if wrapped.inner != nil {
		wrapped = new(stmt)
	}
	*wrapped = stmt{c: c, inner: s, query: query, on: c.serial}
	return wrapped
}

// Close forwards to the driver. database/sql closes a statement once and does
// not use it afterwards, so that its slot is free again.
// It closes them on idle connections too.
func (s *stmt) Close() error {
	s.c.visit.Lock()
	defer s.c.visit.Unlock()
	err := s.inner.Close()
	if s == &s.c.slot {
		*s = stmt{}
	}
	return err
}

// enter is the conn's, and prepares the statement again where its link has been
// replaced, which happens only while nobody uses the connection.
func (s *stmt) enter(ctx context.Context) (mark uint64, err error) {
	mark, err = s.c.enter(ctx)
	if err != nil || s.on == s.c.serial {
		return mark, err
	}
	inner, err := s.c.inner.PrepareContext(ctx, s.query)
	if err != nil {
		return mark, s.c.failed(ctx, err, s.query, mark, effectNone)
	}
	s.inner, s.on = inner, s.c.serial
	return s.c.enter(ctx)
}

// NumInput forwards to the driver.
func (s *stmt) NumInput() int { return s.inner.NumInput() }

// Exec is what database/sql uses of a driver without contexts.
func (s *stmt) Exec(args []driver.Value) (driver.Result, error) {
	return s.ExecContext(context.Background(), named(args))
}

// Query is what database/sql uses of a driver without contexts.
func (s *stmt) Query(args []driver.Value) (driver.Rows, error) {
	return s.QueryContext(context.Background(), named(args))
}

// ExecContext forwards to the driver.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	mark, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	res, err := s.exec(ctx, args)
	if err != nil {
		return nil, s.c.failed(ctx, err, s.query, mark, effectUnknown)
	}
	s.c.answered()
	return res, nil
}

func (s *stmt) exec(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if execer, ok := s.inner.(driver.StmtExecContext); ok {
		return execer.ExecContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	return s.inner.Exec(values)
}

// QueryContext forwards to the driver.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	mark, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := s.querying(ctx, args)
	if err != nil {
		return nil, s.c.failed(ctx, err, s.query, mark, effectUnknown)
	}
	s.c.answered()
	return rows, nil
}

func (s *stmt) querying(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	if queryer, ok := s.inner.(driver.StmtQueryContext); ok {
		return queryer.QueryContext(ctx, args)
	}
	values, err := positional(ctx, args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	return s.inner.Query(values)
}

// CheckNamedValue converts an argument as database/sql would with the driver's
// own statement: its NamedValueChecker, else the connection's, and then its
// ColumnConverter.
func (s *stmt) CheckNamedValue(nv *driver.NamedValue) error {
	err := driver.ErrSkip
	if checker, ok := s.inner.(driver.NamedValueChecker); ok {
		err = checker.CheckNamedValue(nv)
	} else {
		err = s.c.inner.CheckNamedValue(nv)
	}
	if err != driver.ErrSkip {
		return err
	}
	//lint:ignore SA1019 database/sql still serves drivers that have no other
	converter, ok := s.inner.(driver.ColumnConverter)
	if !ok || s.inner.NumInput() < nv.Ordinal {
		return driver.ErrSkip
	}
	value := nv.Value
	if v, ok := value.(driver.Valuer); ok {
		if value, err = v.Value(); err != nil {
			return err
		}
	}
	nv.Value, err = converter.ColumnConverter(nv.Ordinal - 1).ConvertValue(value)
	return err
}
