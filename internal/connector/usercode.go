package connector

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"

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

// refusedLoginKey is the context key by which a BeforeConnect learns that the credentials
// that it gave before were refused.
type refusedLoginKey struct{}

// RefusedLogin is that refusal, nil if there was none.
func RefusedLogin(ctx context.Context) error {
	err, _ := ctx.Value(refusedLoginKey{}).(error)
	return err
}

// setUpSession has the user's AfterConnect set up a new connection. What it has left open is
// closed: the end of its context ends rows and a transaction, and Close waits for them.
func (ctr *Connector) setUpSession(ctx context.Context, l *link) error {
	if ctr.Cfg.AfterConnect == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	db := sql.OpenDB(lentConnector{&l.driverConn})
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	if !ctr.Cfg.catchPanic("Config.AfterConnect", func() { err = ctr.Cfg.AfterConnect(ctx, conn) }) {
		err = errConnectPanicked
	}
	cancel()
	conn.Close()
	if err != nil {
		return fmt.Errorf("Config.AfterConnect: %w", err)
	}
	return nil
}

// lentConnector lends one connection to database/sql, which does not close it.
type lentConnector struct{ c *driverconn.Conn }

func (l lentConnector) Connect(context.Context) (driver.Conn, error) { return lentConn{l.c}, nil }
func (l lentConnector) Driver() driver.Driver                        { return nil }

type lentConn struct{ *driverconn.Conn }

func (lentConn) Close() error { return nil }

// connectDriver has the driver open a connection, which may call the user's DialFunc and
// BeforeConnect. Credentials that are refused are asked for once more.
func (ctr *Connector) connectDriver(ctx context.Context, by driver.Connector) (dc driver.Conn, err error) {
	if !ctr.Cfg.catchPanic("opening a connection (DialFunc, BeforeConnect or the driver)", func() { dc, err = by.Connect(ctx) }) {
		return nil, errConnectPanicked
	}
	if mysqlerr.IsLoginRefused(err) && RefusedLogin(ctx) == nil && ctr.Cfg.MySQL != nil && hasBeforeConnect(ctr.Cfg.MySQL) {
		return ctr.connectDriver(context.WithValue(ctx, refusedLoginKey{}, err), by)
	}
	if err == nil && ctr.Cfg.Wrap != nil && ctr.IsMySQL {
		if missing := driverconn.Missing(dc); missing != "" {
			dc.Close()
			return nil, fmt.Errorf("the connections of Config.Wrap lack driver.%s, which the driver's have: wrap them whole", missing)
		}
	}
	return dc, err
}
