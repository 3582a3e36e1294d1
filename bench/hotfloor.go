// hotfloor.go is the floor below which no pool can get: the driver's connection alone,
// with nothing around it, given just the statements that livepool sends.

package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"

	"github.com/go-sql-driver/mysql"
)

// driverAlone is a caller's two connections of the driver: one as a plain statement has
// it, and one with autocommit off, where the first statement begins a transaction. They
// are given a context that cannot end, for which the driver does nothing.
type driverAlone struct {
	connector driver.Connector
	plain, tx driver.Conn
}

// openFloor opens them, for each caller.
func (p *servicePools) openFloor(ctx context.Context, dsn string) error {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return err
	}
	for i := range p.floor {
		p.floor[i] = &driverAlone{connector: connector}
		if err := p.floor[i].open(ctx); err != nil {
			return err
		}
	}
	return nil
}

// renewFloor opens them anew; where that fails the next statement does, too.
func (p *servicePools) renewFloor() {
	for _, d := range p.floor {
		d.close()
		_ = d.open(context.Background())
	}
}

func (d *driverAlone) open(ctx context.Context) (err error) {
	if d.plain, err = d.connector.Connect(ctx); err != nil {
		return err
	}
	if d.tx, err = d.connector.Connect(ctx); err != nil {
		return err
	}
	return send(d.tx, "SET autocommit = 0")
}

func (d *driverAlone) close() {
	if d == nil {
		return
	}
	for _, c := range []driver.Conn{d.plain, d.tx} {
		if c != nil {
			c.Close()
		}
	}
}

func send(c driver.Conn, statements ...string) error {
	if c == nil {
		return driver.ErrBadConn
	}
	for _, statement := range statements {
		if _, err := c.(driver.ExecerContext).ExecContext(context.Background(), statement, nil); err != nil {
			return err
		}
	}
	return nil
}

func (d *driverAlone) exec(int) error { return send(d.plain, "DO 1") }

func (d *driverAlone) pingAndExec(int) error {
	if err := d.exec(0); err != nil {
		return err
	}
	return d.plain.(driver.Pinger).Ping(context.Background())
}

func (d *driverAlone) unit(caller int) error { return send(d.tx, increment(caller), "COMMIT") }

func (d *driverAlone) keyedUnit(caller int) error {
	return send(d.tx, insertKey(), increment(caller), "COMMIT")
}

// query is pointQuery.
func (d *driverAlone) query(int) error {
	queryer, open := d.plain.(driver.QueryerContext)
	if !open {
		return driver.ErrBadConn
	}
	rows, err := queryer.QueryContext(context.Background(), pointQueryText, nil)
	if err != nil {
		return err
	}
	defer rows.Close()
	row := make([]driver.Value, len(rows.Columns()))
	for err == nil {
		err = rows.Next(row)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
