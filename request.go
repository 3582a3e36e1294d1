// request.go is the requests of a connection: what comes before each of them, how it
// is sent, and what is noted when it is answered. What follows from a failure is
// failure.go's affair.

package livepool

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/livepool/livepool/internal/sqltext"
)

// enter comes before anything that is sent. It returns how many bytes had been
// written by then, by which a failure tells whether anything was sent.
func (c *conn) enter(ctx context.Context, query string, seen sqltext.Effects) (mark uint64, err error) {
	if c.ctr.keepsHeld {
		if err := c.resume(ctx, query); err != nil {
			return 0, err
		}
	}
	if unsent, ok := ctx.(*unsentContext); ok {
		c.suffers(unsent.err, query, ranNothing)
		return 0, c.restWith(unsent.err)
	}
	c.entered, _ = c.ctr.clock.bounds()
	if c.entered-c.proved > lookAfter && c.wire != nil {
		if err := c.lookBack(ctx, query); err != nil {
			return 0, c.restWith(err)
		}
	}
	if c.unchecked || c.transaction.open {
		if err := c.hesitate(ctx, query, seen); err != nil {
			return 0, c.restWith(err)
		}
	}
	c.used = true
	return c.written(), nil
}

// hesitate is what enter does where there is something to look out for.
func (c *conn) hesitate(ctx context.Context, query string, seen sqltext.Effects) error {
	if c.unchecked && !c.transaction.open {
		setup := c.ctr.wrappedSetup()
		err := c.firstUse(ctx)
		c.unchecked = c.unchecked || setup
		return err
	}
	t := &c.transaction
	if t.poison != nil {
		if err := c.mayRun(query); err != nil {
			return err
		}
	}
	if c.results > 0 && c.ctr.mysql {
		c.suffers(errResultOpen, query, ranNothing)
		return errResultOpen
	}
	if t.unit == nil {
		return nil
	}
	if t.unit.keyed.Load() && !c.keepsKeys && c.ctr.mysql {
		if err := c.checkCommitTable(ctx); err != nil {
			return err
		}
	}
	return c.screen(query, seen)
}

// CheckNamedValue forwards to the driver. It lets the arguments through to where
// the statement is sent as long as there is no link, which it has no context to
// open with, and where the statement may have to be prepared first.
func (c *conn) CheckNamedValue(nv *driver.NamedValue) error {
	c.unconverted = c.shell || c.inner.mayPrepare()
	if c.unconverted {
		return nil
	}
	return c.inner.CheckNamedValue(nv)
}

// convert makes up for it, as database/sql would have done: where the statement
// has to be prepared first it says so, and the arguments are converted for that.
func (c *conn) convert(args []driver.NamedValue, atOnce bool) ([]driver.NamedValue, error) {
	c.unconverted = false
	if !atOnce {
		return nil, driver.ErrSkip
	}
	kept := args[:0]
	for _, arg := range args {
		arg.Ordinal = len(kept) + 1
		err := c.inner.CheckNamedValue(&arg)
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
	return c.ExecContext(context.Background(), query, named(args))
}

// Query is like Exec.
func (c *conn) Query(query string, args []driver.Value) (driver.Rows, error) {
	return c.QueryContext(context.Background(), query, named(args))
}

// ExecContext forwards to the driver.
func (c *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	seen := c.effects(query)
	mark, err := c.enter(ctx, query, seen)
	if err != nil {
		return nil, err
	}
	if c.unconverted || !c.inner.execs {
		if args, err = c.convert(args, c.inner.execs); err != nil {
			return nil, c.restWith(err)
		}
	}
	if c.wire != nil && c.wire.limited && sqltext.LoadsData(query) {
		defer c.wire.unhurried()()
	}
	if seen != 0 {
		if mark, err = c.runs(ctx, query, seen); err != nil {
			return nil, c.restWith(err)
		}
	}
	res, err := c.inner.ExecContext(ctx, query, args)
	if err != nil {
		return nil, c.restWith(c.answeredMarked(ctx, c.failed(ctx, err, query, mark, effectUnknown)))
	}
	c.answered()
	if c.transaction.curable {
		c.cured()
	}
	return res, c.restWith(c.answeredMarked(ctx, nil))
}

// QueryContext forwards to the driver.
func (c *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	seen := c.effects(query)
	mark, err := c.enter(ctx, query, seen)
	if err != nil {
		return nil, err
	}
	if c.unconverted || !c.inner.queries {
		if args, err = c.convert(args, c.inner.queries); err != nil {
			return nil, c.restWith(err)
		}
	}
	if seen != 0 {
		if mark, err = c.runs(ctx, query, seen); err != nil {
			return nil, c.restWith(err)
		}
	}
	rows, err := c.inner.QueryContext(ctx, query, args)
	if err != nil {
		return nil, c.restWith(c.answeredMarked(ctx, c.failed(ctx, err, query, mark, effectUnknown)))
	}
	c.answered()
	return c.wrapRows(ctx, rows, query), nil
}

// Prepare is what database/sql uses of a driver without contexts.
func (c *conn) Prepare(query string) (driver.Stmt, error) {
	return c.PrepareContext(context.Background(), query)
}

// PrepareContext forwards to the driver. A lost PREPARE has no effect.
func (c *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	seen := c.effects(query)
	mark, err := c.enter(ctx, query, seen)
	if err != nil {
		return nil, err
	}
	s, err := c.inner.PrepareContext(ctx, query)
	if err != nil {
		return nil, c.restWith(c.failed(ctx, err, query, mark, effectNone))
	}
	c.prove()
	wrapped := c.wrapStmt(s, query, seen) // counted before the maintainer may look
	if preparing, ok := ctx.(*preparingContext); ok {
		wrapped.unit = preparing.unit
	}
	c.rest()
	return wrapped, nil
}

// Begin is what database/sql uses of a driver without contexts.
func (c *conn) Begin() (driver.Tx, error) {
	return c.BeginTx(context.Background(), driver.TxOptions{})
}

// BeginTx forwards to the driver. A lost BEGIN has no effect.
func (c *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	servesSession(ctx)
	mark, err := c.enter(ctx, "BEGIN", sqltext.Ends)
	if err != nil {
		return nil, err
	}
	inner, err := c.inner.BeginTx(ctx, opts)
	if err != nil {
		if opts.Isolation != 0 && c.ctr.mysql {
			c.stained = true // the level may have been set, for the next transaction
		}
		return nil, c.restWith(c.failed(ctx, err, "BEGIN", mark, effectNone))
	}
	c.prove()
	t := &c.tx
	if c.transaction.open { // begun twice on a sql.Conn; the first is still its owner's to end
		t = new(tx)
	}
	c.transaction.begins(ctx)
	if unit := c.transaction.unit; unit != nil {
		c.holds(unit.name)
	}
	*t = tx{c: c, inner: inner}
	c.rest()
	return t, nil
}

// Ping is the ping a caller asks for. As long as nothing has run since the
// checkout it verifies a connection "establishing one if necessary", as
// sql.DB.Ping promises, but database/sql does not send a ping again.
func (c *conn) Ping(ctx context.Context) error {
	fresh := !c.used
	mark, err := c.enter(ctx, "", 0)
	if err != nil {
		return err
	}
	defer c.rest()
	if !fresh {
		if err := c.inner.Ping(ctx); err != nil {
			return c.withheld(c.failed(ctx, err, "ping", mark, effectNone))
		}
		c.prove()
		return nil
	}
	owed := c.unchecked
	c.used, c.unchecked = false, false
	if !c.ctr.mysql {
		err := c.pingOther(ctx, true)
		c.unchecked = c.unchecked || owed
		return err
	}
	switch v := c.prePing(ctx); {
	case v == keep && !c.unchecked:
		c.unchecked = owed
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	default:
		return c.renew(ctx, v) // whose login is an answer of the server
	}
}

// pingOther is the ping of a driver other than MySQL's, within PingTimeout. An
// error of its ping may be about anything, and its connect prove nothing: only
// for a loss is another connection opened, and that one is pinged too.
func (c *conn) pingOther(ctx context.Context, mayRenew bool) error {
	bounded, cancel := context.WithTimeout(ctx, c.ctr.cfg.PingTimeout)
	defer cancel()
	sent, mark := c.ctr.clock.now(), c.written()
	err := c.inner.Ping(bounded)
	lost := err != nil && (bounded.Err() != nil || c.ctr.classify(err)&ConnDead != 0)
	switch {
	case err == nil:
		c.prove()
		return nil
	case !mayRenew, !lost, ctx.Err() != nil:
		return c.failed(ctx, err, "ping", mark, effectNone)
	}
	if err := c.renew(ctx, c.ctr.pinged(&c.link, sent, err)); err != nil {
		return err
	}
	return c.pingOther(ctx, false)
}
