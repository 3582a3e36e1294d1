// request.go has the requests of a connection: what comes before each of them, how it is
// sent, and what is noted when it is answered. failure.go has what follows from a
// failure.

package connector

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
	"github.com/livepool/livepool/internal/sqltext"
)

// beginRequest comes before anything that is sent. It returns how many bytes had been
// written by then: after a failure that shows whether anything was sent.
func (c *conn) beginRequest(ctx context.Context, query string, effects sqltext.Effects) (mark uint64, err error) {
	if c.failedEnd != nil {
		return 0, c.hideBadConn(&failedEndError{c.addr(), c.threadID(), c.failedEnd})
	}
	if c.ctr.keepParkedAlive {
		if err := c.resume(ctx, query); err != nil {
			return 0, err
		}
	}
	if unsent, ok := ctx.(*unsentContext); ok {
		c.noteTxError(unsent.reason, query, ranNothing)
		return 0, c.parkWith(unsent.reason)
	}
	c.requestStarted = c.ctr.clock.Earliest()
	if c.requestStarted-c.lastRoundTrip > peekAfter && c.wire != nil {
		if err := c.peekAfterPause(ctx, query); err != nil {
			return 0, c.parkWith(err)
		}
	}
	if c.needsCheck || c.transaction.open || c.openResults > 0 {
		if err := c.checkBeforeSend(ctx, query, effects); err != nil {
			return 0, c.parkWith(err)
		}
	}
	if c.autocommitOff && !c.transaction.open { // the last step: those before it may replace the link
		if err := c.turnAutocommitOn(ctx); err != nil {
			return 0, c.parkWith(err)
		}
	}
	c.used = true
	return c.written(), nil
}

// checkBeforeSend is the part of beginRequest for a connection that was not checked, or on
// which a transaction or a result is open.
func (c *conn) checkBeforeSend(ctx context.Context, query string, effects sqltext.Effects) error {
	if c.needsCheck && !c.transaction.open {
		isSetup := c.ctr.isWrapperSetup()
		err := c.deferredCheckout(ctx)
		c.needsCheck = c.needsCheck || isSetup
		return err
	}
	t := &c.transaction
	isBesideResult := c.openResults > 0 && c.ctr.IsMySQL
	switch {
	case !t.open && isBesideResult:
		return errResultOpen
	case !t.open:
		return nil
	}
	t.requests++
	if t.poison != nil {
		if err := c.mayRun(query); err != nil {
			return err
		}
	}
	if isBesideResult {
		c.noteTxError(errResultOpen, query, ranNothing)
		return errResultOpen
	}
	if t.unit == nil {
		return nil
	}
	if t.unit.HasKey.Load() && !c.commitTableOK && c.ctr.IsMySQL {
		if err := c.checkCommitTable(ctx); err != nil {
			return err
		}
	}
	return c.vetStatement(query, effects)
}

// CheckNamedValue forwards to the driver. It leaves the arguments unconverted while
// there is no link, because it has no context to open one with, and where the statement
// may have to be prepared first; convert does it later.
func (c *conn) CheckNamedValue(nv *driver.NamedValue) error {
	c.argsDeferred = c.unconnected || c.driverConn.MayPrepare()
	if c.argsDeferred {
		return nil
	}
	return c.driverConn.CheckNamedValue(nv)
}

// convert converts the arguments that CheckNamedValue left, as database/sql would have
// done. Where the statement must be prepared first it returns driver.ErrSkip, and the
// prepared statement converts them.
func (c *conn) convert(args []driver.NamedValue, atOnce bool) ([]driver.NamedValue, error) {
	c.argsDeferred = false
	if !atOnce {
		return nil, driver.ErrSkip
	}
	kept := args[:0]
	for _, arg := range args {
		arg.Ordinal = len(kept) + 1
		err := c.driverConn.CheckNamedValue(&arg)
		if err == driver.ErrSkip {
			arg.Value, err = driver.DefaultParameterConverter.ConvertValue(arg.Value)
		}
		switch err {
		case nil:
			kept = append(kept, arg)
		case driver.ErrRemoveArgument:
		default:
			return nil, fmt.Errorf("sql: converting argument %s type: %w", argumentName(&arg), err)
		}
	}
	return kept, nil
}

func argumentName(arg *driver.NamedValue) string {
	if arg.Name != "" {
		return fmt.Sprintf("with name %q", arg.Name)
	}
	return fmt.Sprintf("$%d", arg.Ordinal)
}

// Exec is what programs call inside sql.Conn.Raw, as the driver's README shows
// for the results of several statements.
func (c *conn) Exec(query string, args []driver.Value) (driver.Result, error) {
	return c.ExecContext(context.Background(), query, driverconn.Named(args))
}

// Query is like Exec.
func (c *conn) Query(query string, args []driver.Value) (driver.Rows, error) {
	return c.QueryContext(context.Background(), query, driverconn.Named(args))
}

// ExecContext forwards to the driver.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	effects := c.effects(query)
	mark, err := c.beginRequest(ctx, query, effects)
	if err != nil {
		return nil, err
	}
	if c.argsDeferred || !c.driverConn.ExecsDirectly {
		if args, err = c.convert(args, c.driverConn.ExecsDirectly); err != nil {
			return nil, c.parkWith(err)
		}
	}
	if c.wire != nil && c.wire.HasUserTimeout && sqltext.LoadsData(query) {
		defer c.wire.WithoutUserTimeout()()
	}
	if effects != 0 {
		if mark, err = c.noteEffects(ctx, query, effects); err != nil {
			return nil, c.parkWith(err)
		}
	}
	watched := c.watch(ctx)
	res, err := c.driverConn.ExecContext(watched, query, args)
	if err = c.unwatch(watched, err); err != nil {
		return nil, c.parkWith(c.afterStatement(ctx, c.handleFailure(ctx, err, query, mark, statementRequest)))
	}
	c.recordAnswer()
	if c.transaction.recoverable {
		c.noteRecovery()
	}
	return res, c.endStatement(ctx)
}

// endStatement ends a statement that was answered. Most have no sentinel, and are not to
// pay for those that have one.
func (c *conn) endStatement(ctx context.Context) error {
	if c.transaction.sentinel.query == "" {
		c.park()
		return nil
	}
	return c.parkWith(c.checkSentinel(ctx))
}

// QueryContext forwards to the driver.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	effects := c.effects(query)
	mark, err := c.beginRequest(ctx, query, effects)
	if err != nil {
		return nil, err
	}
	if c.argsDeferred || !c.driverConn.QueriesDirectly {
		if args, err = c.convert(args, c.driverConn.QueriesDirectly); err != nil {
			return nil, c.parkWith(err)
		}
	}
	if effects != 0 {
		if mark, err = c.noteEffects(ctx, query, effects); err != nil {
			return nil, c.parkWith(err)
		}
	}
	watched := c.watch(ctx)
	rows, err := c.driverConn.QueryContext(watched, query, args)
	if err != nil {
		err = c.unwatch(watched, err)
		return nil, c.parkWith(c.afterStatement(ctx, c.handleFailure(ctx, err, query, mark, statementRequest)))
	}
	c.recordAnswer()
	return c.wrapRows(ctx, watched, rows, query), nil
}

// Prepare is what database/sql uses of a driver without contexts.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext forwards to the driver. A lost PREPARE has no effect.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	effects := c.effects(query)
	mark, err := c.beginRequest(ctx, query, effects)
	if err != nil {
		return nil, err
	}
	watched := c.watch(ctx)
	s, err := c.driverConn.PrepareContext(watched, query)
	if err = c.unwatch(watched, err); err != nil {
		return nil, c.parkWith(c.handleFailure(ctx, err, query, mark, effectlessRequest))
	}
	c.touch()
	wrapped := c.wrapStmt(s, query, effects) // before park: it is counted when the maintainer may run
	if preparing, ok := ctx.(*prepareContext); ok {
		wrapped.preparedIn = preparing.unit
	}
	c.park()
	return wrapped, nil
}

// Begin is what database/sql uses of a driver without contexts.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx forwards to the driver. A lost BEGIN has no effect.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	noteSessionServed(ctx)
	mark, err := c.beginRequest(ctx, "BEGIN", sqltext.Ends)
	if err != nil {
		return nil, err
	}
	if err := c.checkPrimary(ctx, mark); err != nil {
		return nil, c.parkWith(err)
	}
	inner, asked, err := c.begin(ctx, opts)
	// If BEGIN failed the level may have been set for the next transaction. On a node of a
	// Galera cluster it may stay for the next one even if all went well: seen once in hours
	// on MariaDB 10.11 with galera-4, after conflicts with other nodes.
	if opts.Isolation != 0 && c.ctr.IsMySQL && (err != nil || c.ctr.InCluster.Load()) {
		c.dirty = true
	}
	if err != nil {
		return nil, c.parkWith(c.handleFailure(ctx, err, "BEGIN", mark, effectlessRequest))
	}
	if asked {
		c.touch()
	}
	t := &c.tx
	if c.transaction.open { // begun twice on a sql.Conn; the owner still ends the first
		t = new(tx)
	}
	c.transaction.begin(ctx, opts.ReadOnly)
	c.openTxs++
	if unit := c.transaction.unit; unit != nil {
		unit.server.Store(c.server)
		c.trackCheckout(unit.Name)
	}
	*t = tx{c: c, driverTx: inner}
	c.park()
	return t, nil
}

// checkPrimary asks before a unit that must see the last writes whether they are made here.
// Nothing tells a pool that only reads that its primary was demoted: no write is refused.
func (c *conn) checkPrimary(ctx context.Context, mark uint64) error {
	if unit, ok := ctx.(*BeginContext); !ok || !unit.NeedsPrimary || !c.ctr.followsPrimary() {
		return nil
	}
	asked, watched := c.ctr.clock.Now(), c.watch(ctx)
	takesWrites, err := c.takesWrites(watched, false)
	if err = c.unwatch(watched, err); err != nil {
		return c.handleFailure(ctx, err, "BEGIN", mark, effectlessRequest)
	}
	c.touch()
	if takesWrites {
		return nil
	}
	c.dead = true
	refusal := newRoleError(false, asked)
	c.ctr.noteDemotion(c.host, asked, refusal)
	return c.newBadConnError(refusal, "before anything was sent")
}

// Ping is a ping that the caller asks for. Before the first request after a checkout it
// verifies the connection, "establishing one if necessary" as sql.DB.Ping promises,
// because database/sql does not repeat a failed ping.
func (c *conn) Ping(ctx context.Context) error {
	fresh := !c.used
	mark, err := c.beginRequest(ctx, "", 0)
	if err != nil {
		return err
	}
	defer c.park()
	if !fresh {
		watched := c.watch(ctx)
		if err := c.unwatch(watched, c.driverConn.Ping(watched)); err != nil {
			return c.hideBadConn(c.handleFailure(ctx, err, "ping", mark, effectlessRequest))
		}
		c.touch()
		return nil
	}
	c.used = false
	if !c.ctr.IsMySQL {
		neededCheck := c.needsCheck
		err := c.pingOther(ctx, true)
		c.needsCheck = c.needsCheck || neededCheck
		return err
	}
	switch v := c.prePing(ctx); {
	case v == keep:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return c.reconnect(ctx, v) // the login of the new link is an answer of the server
	}
}

// pingOther is the ping of a driver other than MySQL's, within PingTimeout. An error of
// its ping may be about anything, and a connect of it may prove nothing: so another
// connection is opened only after a loss, and is pinged too.
func (c *conn) pingOther(ctx context.Context, mayRenew bool) error {
	bounded, cancel := context.WithTimeout(ctx, c.ctr.Cfg.PingTimeout)
	defer cancel()
	sent, mark := c.ctr.clock.Now(), c.written()
	err := c.driverConn.Ping(bounded)
	lost := err != nil && (bounded.Err() != nil || c.ctr.Classify(err)&mysqlerr.ConnDead != 0)
	switch {
	case err == nil:
		c.touch()
		return nil
	case !mayRenew, !lost, ctx.Err() != nil:
		return c.handleFailure(ctx, err, "ping", mark, effectlessRequest)
	}
	if err := c.reconnect(ctx, c.ctr.judgePing(&c.link, sent, err)); err != nil {
		return err
	}
	return c.pingOther(ctx, false)
}
