package fakedb

import (
	"context"
	"database/sql/driver"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// RecordingDB is a DB that notes when its connections are opened, pinged,
// used and closed, and what a driver must never see: a connection closed twice,
// used after its end, or by two at a time. Its zero value works.
type RecordingDB struct {
	DB
	mu      sync.Mutex
	records map[int64]*ConnRecord

	connecting     atomic.Int64 // connections open or being opened
	Peak           atomic.Int64 // the most of them that there ever were
	closedTwice    atomic.Int64
	overlaps       atomic.Int64
	usedAfterClose atomic.Int64
	pingedInUse    atomic.Int64
	Statements     atomic.Int64 // prepared, less closed on a living connection
}

// ConnRecord is what happened to one connection.
type ConnRecord struct {
	OpenedAt, ClosedAt time.Time // ClosedAt is zero while it is open
	Pings              []time.Time
	LastAnswer         time.Time
	InUse              bool      // as RecordHeld was told
	ReturnedAt         time.Time // when RecordHeld was last told
}

type recordingConn struct {
	*Conn
	d      *RecordingDB
	record *ConnRecord
	busy   atomic.Bool
}

func (d *RecordingDB) Connect(ctx context.Context) (driver.Conn, error) {
	if n := d.connecting.Add(1); n > d.Peak.Load() {
		d.Peak.Store(n)
	}
	dc, err := d.DB.Connect(ctx)
	if err != nil {
		d.connecting.Add(-1)
		return nil, err
	}
	c := &recordingConn{Conn: dc.(*Conn), d: d, record: &ConnRecord{OpenedAt: time.Now(), LastAnswer: time.Now()}}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records == nil {
		d.records = map[int64]*ConnRecord{}
	}
	d.records[c.ID] = c.record
	return c, nil
}

// Records are copies, in the order in which the connections were opened.
func (d *RecordingDB) Records() (records []ConnRecord) {
	conns := d.DB.Conns()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range conns {
		records = append(records, *d.records[c.ID])
	}
	return records
}

// RecordHeld is told that a caller has the connection, or has returned it.
func (d *RecordingDB) RecordHeld(id int64, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records[id].InUse, d.records[id].ReturnedAt = held, time.Now()
}

// exclusively runs f as something that the driver does on the connection.
func (c *recordingConn) exclusively(f func() error) error {
	if c.Closed.Load() {
		c.d.usedAfterClose.Add(1)
	}
	if c.busy.Swap(true) {
		c.d.overlaps.Add(1)
	}
	err := f()
	c.busy.Store(false)
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if err == nil {
		c.record.LastAnswer = time.Now()
	}
	return err
}

func (c *recordingConn) Close() error {
	if c.Closed.Load() {
		c.d.closedTwice.Add(1)
	} else {
		c.d.connecting.Add(-1)
	}
	if c.busy.Load() {
		c.d.overlaps.Add(1)
	}
	c.d.mu.Lock()
	c.record.ClosedAt = time.Now()
	c.d.mu.Unlock()
	return c.Conn.Close()
}

func (c *recordingConn) Ping(ctx context.Context) error {
	c.d.mu.Lock()
	if c.record.InUse {
		c.d.pingedInUse.Add(1)
	}
	c.record.Pings = append(c.record.Pings, time.Now())
	c.d.mu.Unlock()
	return c.exclusively(func() error { return c.Conn.Ping(ctx) })
}

func (c *recordingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	err = c.exclusively(func() error { res, err = c.Conn.ExecContext(ctx, query, args); return err })
	return res, err
}

func (c *recordingConn) Prepare(query string) (s driver.Stmt, err error) {
	err = c.exclusively(func() error { s, err = c.Conn.Prepare(query); return err })
	if err != nil {
		return nil, err
	}
	c.d.Statements.Add(1)
	return &recordingStmt{s, c}, nil
}

func (c *recordingConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &OneRow{}, nil
}

type recordingStmt struct {
	driver.Stmt
	c *recordingConn
}

func (s *recordingStmt) Exec([]driver.Value) (driver.Result, error) {
	return s.c.ExecContext(context.Background(), "prepared", nil)
}

func (s *recordingStmt) Close() error {
	return s.c.exclusively(func() error {
		if !s.c.Closed.Load() {
			s.c.d.Statements.Add(-1)
		}
		return s.Stmt.Close()
	})
}

// checkUse fails the test if a driver saw what none must see.
func (d *RecordingDB) checkUse(t *testing.T) {
	t.Helper()
	for what, n := range map[string]*atomic.Int64{
		"closed twice": &d.closedTwice, "used by two at a time": &d.overlaps,
		"used after the end": &d.usedAfterClose, "pinged in use": &d.pingedInUse,
	} {
		if n := n.Load(); n != 0 {
			t.Errorf("%d times a connection was %s", n, what)
		}
	}
}

// CheckClosed closes the pool, after which nothing may be open.
func (d *RecordingDB) CheckClosed(t *testing.T, p io.Closer) {
	t.Helper()
	p.Close()
	if n := d.OpenConns(); n != 0 {
		t.Errorf("%d connections open after Close", n)
	}
	d.checkUse(t)
}
