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
	mu    sync.Mutex
	lives map[int64]*Life

	dialling    atomic.Int64 // connections open or being opened
	Peak        atomic.Int64 // the most of them that there ever were
	twice       atomic.Int64
	overlaps    atomic.Int64
	afterlife   atomic.Int64
	pingedInUse atomic.Int64
	Statements  atomic.Int64 // prepared, less closed on a living connection
}

// Life is what happened to one connection.
type Life struct {
	Born, Died time.Time // Died is zero while it is open
	Pings      []time.Time
	LastAnswer time.Time
	InUse      bool      // as NoteHeld was told
	Returned   time.Time // when NoteHeld was last told
}

type recordingConn struct {
	*Conn
	d    *RecordingDB
	life *Life
	busy atomic.Bool
}

func (d *RecordingDB) Connect(ctx context.Context) (driver.Conn, error) {
	if n := d.dialling.Add(1); n > d.Peak.Load() {
		d.Peak.Store(n)
	}
	dc, err := d.DB.Connect(ctx)
	if err != nil {
		d.dialling.Add(-1)
		return nil, err
	}
	c := &recordingConn{Conn: dc.(*Conn), d: d, life: &Life{Born: time.Now(), LastAnswer: time.Now()}}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lives == nil {
		d.lives = map[int64]*Life{}
	}
	d.lives[c.ID] = c.life
	return c, nil
}

// Lives are copies, in the order in which the connections were opened.
func (d *RecordingDB) Lives() (lives []Life) {
	conns := d.DB.Conns()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range conns {
		lives = append(lives, *d.lives[c.ID])
	}
	return lives
}

// NoteHeld is told that a caller has the connection, or has returned it.
func (d *RecordingDB) NoteHeld(id int64, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives[id].InUse, d.lives[id].Returned = held, time.Now()
}

// busily runs f as something that the driver does on the connection.
func (c *recordingConn) busily(f func() error) error {
	if c.Closed.Load() {
		c.d.afterlife.Add(1)
	}
	if c.busy.Swap(true) {
		c.d.overlaps.Add(1)
	}
	err := f()
	c.busy.Store(false)
	c.d.mu.Lock()
	defer c.d.mu.Unlock()
	if err == nil {
		c.life.LastAnswer = time.Now()
	}
	return err
}

func (c *recordingConn) Close() error {
	if c.Closed.Load() {
		c.d.twice.Add(1)
	} else {
		c.d.dialling.Add(-1)
	}
	if c.busy.Load() {
		c.d.overlaps.Add(1)
	}
	c.d.mu.Lock()
	c.life.Died = time.Now()
	c.d.mu.Unlock()
	return c.Conn.Close()
}

func (c *recordingConn) Ping(ctx context.Context) error {
	c.d.mu.Lock()
	if c.life.InUse {
		c.d.pingedInUse.Add(1)
	}
	c.life.Pings = append(c.life.Pings, time.Now())
	c.d.mu.Unlock()
	return c.busily(func() error { return c.Conn.Ping(ctx) })
}

func (c *recordingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	err = c.busily(func() error { res, err = c.Conn.ExecContext(ctx, query, args); return err })
	return res, err
}

func (c *recordingConn) Prepare(query string) (s driver.Stmt, err error) {
	err = c.busily(func() error { s, err = c.Conn.Prepare(query); return err })
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
	return s.c.busily(func() error {
		if !s.c.Closed.Load() {
			s.c.d.Statements.Add(-1)
		}
		return s.Stmt.Close()
	})
}

// checkSound fails the test if a driver saw what none must see.
func (d *RecordingDB) checkSound(t *testing.T) {
	t.Helper()
	for what, n := range map[string]*atomic.Int64{
		"closed twice": &d.twice, "used by two at a time": &d.overlaps,
		"used after the end": &d.afterlife, "pinged in use": &d.pingedInUse,
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
	d.checkSound(t)
}
