package connector

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// Classify says what err means; the user's Classify goes first.
func (ctr *Connector) Classify(err error) mysqlerr.Class {
	if class, decided := ctr.override(err); decided {
		return class
	}
	return mysqlerr.Classify(err)
}

// override is what the user's Classify says of err, if it decides.
func (ctr *Connector) override(err error) (class mysqlerr.Class, decided bool) {
	if override := ctr.Cfg.Classify; override != nil {
		ctr.Cfg.catchPanic("Config.Classify", func() { class, decided = override(err) })
	}
	return class, decided
}

// errConnectPanicked means that a connection could not be opened because the user's code
// panicked. That is a fault of the program, not an outage.
var errConnectPanicked = errors.New("the driver, the DialFunc or BeforeConnect of its Config, or AfterConnect panicked; the stack is in the log")

// setUpSession has the user's AfterConnect set up a new connection. Whatever that does, the
// connection ends with ctx, and is the pool's alone afterwards.
func (o *connectAttempt) setUpSession(ctx context.Context) (err error) {
	hook, l := o.ctr.Cfg.AfterConnect, &o.link
	if hook == nil {
		return nil
	}
	o.inHook.Store(true)
	defer o.inHook.Store(false)
	if l.wire != nil {
		defer context.AfterFunc(ctx, func() { l.wire.Close() })()
	}
	db := sql.OpenDB(lentConnector{&l.driverConn})
	var mu sync.Mutex // held while a statement runs
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		db.Close() // so that what the function has left behind in a goroutine sends nothing any more
	}()
	exec := func(query string, args ...any) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := db.ExecContext(ctx, query, args...)
		return err
	}
	if !o.ctr.Cfg.catchPanic("Config.AfterConnect", func() { err = hook(ctx, exec) }) {
		return errConnectPanicked
	}
	switch {
	case err == nil:
		return ctx.Err() // the function may not have looked
	case ctx.Err() == nil && (!l.driverConn.IsValid() || mysqlerr.Number(err) != 0):
		return fmt.Errorf("Config.AfterConnect: %w", err) // of the connection, or of the server
	}
	return &afterConnectError{err}
}

// afterConnectError is an error of AfterConnect's own. It says nothing of the server, which has
// logged the connection in.
type afterConnectError struct{ cause error }

func (e *afterConnectError) Error() string { return "Config.AfterConnect: " + e.cause.Error() }
func (e *afterConnectError) Unwrap() error {
	if errors.Is(e.cause, driver.ErrBadConn) { // for database/sql that is a sign to open another
		return nil
	}
	return e.cause
}

// lentConnector lends one connection to database/sql, which does not close it.
type lentConnector struct{ c *driverconn.Conn }

func (l lentConnector) Connect(context.Context) (driver.Conn, error) { return lentConn{l.c}, nil }
func (l lentConnector) Driver() driver.Driver                        { return nil }

type lentConn struct{ *driverconn.Conn }

func (lentConn) Close() error { return nil }

// connectDriver has the driver open a connection, which may call the user's DialFunc and
// BeforeConnect.
func (ctr *Connector) connectDriver(ctx context.Context, by driver.Connector) (dc driver.Conn, err error) {
	if !ctr.Cfg.catchPanic("opening a connection (DialFunc, BeforeConnect or the driver)", func() { dc, err = by.Connect(ctx) }) {
		return nil, errConnectPanicked
	}
	if err == nil && ctr.Cfg.Wrap != nil && ctr.IsMySQL {
		if missing := driverconn.Missing(dc); missing != "" {
			dc.Close()
			return nil, fmt.Errorf("the connections of Config.Wrap lack driver.%s, which the driver's have: wrap them whole", missing)
		}
	}
	return dc, err
}
