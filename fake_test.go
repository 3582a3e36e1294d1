package livepool_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
)

// fake is a database whose connections fail as a test tells them to. Its zero
// value works.
type fake struct {
	mu    sync.Mutex
	conns []*fakeConn

	connects atomic.Int64
	pings    atomic.Int64
	execs    atomic.Int64

	// When set, they decide. They run without the lock.
	onConnect func(ctx context.Context, n int64) error
	onPing    func(ctx context.Context, c *fakeConn) error
	onExec    func(ctx context.Context, c *fakeConn, query string) error
	onPrepare func(c *fakeConn) error
	onBegin   func(c *fakeConn) error
	onReset   func(c *fakeConn) error
	onCommit  func(c *fakeConn) error
}

type fakeConn struct {
	db     *fake
	id     int64
	closed atomic.Bool
	dead   atomic.Bool // the server is gone: pings fail, and so do statements
	valid  atomic.Bool
	args   []driver.NamedValue // of the last Exec
}

// CheckNamedValue takes a uint64 that database/sql would refuse.
func (c *fakeConn) CheckNamedValue(nv *driver.NamedValue) error {
	if _, ok := nv.Value.(uint64); ok {
		nv.Value = "converted uint64"
		return nil
	}
	return driver.ErrSkip
}

// errGone is what a fake's statement meets on a connection that is gone after
// it was written.
var errGone = io.ErrUnexpectedEOF

func (f *fake) Connect(ctx context.Context) (driver.Conn, error) {
	n := f.connects.Add(1)
	if f.onConnect != nil {
		if err := f.onConnect(ctx, n); err != nil {
			return nil, err
		}
	}
	c := &fakeConn{db: f, id: n}
	c.valid.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.conns = append(f.conns, c)
	return c, nil
}

func (f *fake) Driver() driver.Driver { return nil }

// all are the connections that were ever opened.
func (f *fake) all() []*fakeConn {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*fakeConn(nil), f.conns...)
}

// open counts those that are not closed.
func (f *fake) open() (n int) {
	for _, c := range f.all() {
		if !c.closed.Load() {
			n++
		}
	}
	return n
}

// kill makes every connection that exists a dead one.
func (f *fake) kill() {
	for _, c := range f.all() {
		c.dead.Store(true)
	}
}

func (c *fakeConn) Close() error {
	if c.closed.Swap(true) {
		return errors.New("fake: closed twice")
	}
	return nil
}
func (c *fakeConn) IsValid() bool { return c.valid.Load() && !c.closed.Load() }

func (c *fakeConn) ResetSession(context.Context) error {
	if c.db.onReset != nil {
		return c.db.onReset(c)
	}
	return nil
}

func (c *fakeConn) Ping(ctx context.Context) error {
	c.db.pings.Add(1)
	switch {
	case c.db.onPing != nil:
		return c.db.onPing(ctx, c)
	case c.dead.Load():
		return errGone
	}
	return nil
}

func (c *fakeConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if query == "DO 0" { // a ping that asks for work
		c.db.pings.Add(1)
	} else {
		c.db.execs.Add(1)
	}
	c.args = args
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if c.db.onExec != nil {
		if err := c.db.onExec(ctx, c, query); err != nil {
			return nil, err
		}
	}
	if c.dead.Load() {
		c.valid.Store(false)
		return nil, errGone
	}
	return driver.RowsAffected(c.id), nil
}

func (c *fakeConn) Prepare(string) (driver.Stmt, error) {
	if c.db.onPrepare != nil {
		if err := c.db.onPrepare(c); err != nil {
			return nil, err
		}
	}
	return &fakeStmt{c}, nil
}

func (c *fakeConn) Begin() (driver.Tx, error) {
	if c.db.onBegin != nil {
		if err := c.db.onBegin(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}
func (c *fakeConn) Commit() error {
	if c.db.onCommit != nil {
		return c.db.onCommit(c)
	}
	return nil
}
func (c *fakeConn) Rollback() error { return nil }

type fakeStmt struct{ c *fakeConn }

func (s *fakeStmt) Close() error  { return nil }
func (s *fakeStmt) NumInput() int { return -1 }
func (s *fakeStmt) Exec([]driver.Value) (driver.Result, error) {
	if s.c.closed.Load() {
		return nil, driver.ErrBadConn
	}
	return s.c.ExecContext(context.Background(), "prepared", nil)
}
func (s *fakeStmt) Query([]driver.Value) (driver.Rows, error) {
	return nil, errors.New("fake: no rows")
}

// openFake opens a pool on f with the defaults as changed by change, but for the
// keep-alive: what callers meet is theirs to find.
func openFake(t testing.TB, f *fake, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.KeepAlive = 0
	cfg.Logger = slog.New(slog.DiscardHandler)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// execer is a sql.DB, a sql.Conn or a sql.Tx.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// servedBy runs a statement and returns which connection served it.
func servedBy(t testing.TB, db execer) int64 {
	t.Helper()
	res, err := db.ExecContext(context.Background(), "DO 1")
	if err != nil {
		t.Fatal(err)
	}
	id, err := res.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// warm opens n connections at the same time and returns them to the pool.
func warm(t testing.TB, db *sql.DB, n int) {
	t.Helper()
	held := make([]*sql.Conn, n)
	for i := range held {
		c, err := db.Conn(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		servedBy(t, c)
		held[i] = c
	}
	for _, c := range held {
		c.Close()
	}
}

func serverError(number uint16, message string) error {
	return &mysql.MySQLError{Number: number, Message: message}
}

// blackHole lets pings on dead connections wait for their end, and ends the
// connection with them, as the driver does.
func blackHole(ctx context.Context, c *fakeConn) error {
	if !c.dead.Load() {
		return nil
	}
	<-ctx.Done()
	c.valid.Store(false)
	return ctx.Err()
}

// diary is a fake database that notes when its connections are opened, pinged,
// used and closed, and what a driver must never see: a connection closed twice,
// used after its end, or by two at a time. Its zero value works.
type diary struct {
	fake
	mu    sync.Mutex
	lives map[int64]*life

	dialling, most atomic.Int64 // connections open or being opened: now, and at most ever
	twice          atomic.Int64
	overlaps       atomic.Int64
	afterlife      atomic.Int64
	pingedInUse    atomic.Int64
	statements     atomic.Int64 // prepared, less closed on a living connection
}

// life is one connection's. Times are since the test's start.
type life struct {
	born, died time.Time // died is zero while it lives
	pings      []time.Time
	spoke      time.Time // its last answer
	inUse      bool
	returned   time.Time
}

type diaryConn struct {
	*fakeConn
	d    *diary
	life *life
	busy atomic.Bool
}

func (d *diary) Connect(ctx context.Context) (driver.Conn, error) {
	if n := d.dialling.Add(1); n > d.most.Load() {
		d.most.Store(n)
	}
	dc, err := d.fake.Connect(ctx)
	if err != nil {
		d.dialling.Add(-1)
		return nil, err
	}
	c := &diaryConn{fakeConn: dc.(*fakeConn), d: d, life: &life{born: time.Now(), spoke: time.Now()}}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lives == nil {
		d.lives = map[int64]*life{}
	}
	d.lives[c.id] = c.life
	return c, nil
}

// all are copies of the lives, in the order of their births.
func (d *diary) all() (lives []life) {
	conns := d.fake.all()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range conns {
		lives = append(lives, *d.lives[c.id])
	}
	return lives
}

// isHeld notes that a caller has the connection, or has returned it.
func (d *diary) isHeld(id int64, held bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lives[id].inUse, d.lives[id].returned = held, time.Now()
}

// busily runs f as something that the driver does on the connection.
func (c *diaryConn) busily(f func() error) error {
	if c.closed.Load() {
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
		c.life.spoke = time.Now()
	}
	return err
}

func (c *diaryConn) Close() error {
	if c.closed.Load() {
		c.d.twice.Add(1)
	} else {
		c.d.dialling.Add(-1)
	}
	if c.busy.Load() {
		c.d.overlaps.Add(1)
	}
	c.d.mu.Lock()
	c.life.died = time.Now()
	c.d.mu.Unlock()
	return c.fakeConn.Close()
}

func (c *diaryConn) Ping(ctx context.Context) error {
	c.d.mu.Lock()
	if c.life.inUse {
		c.d.pingedInUse.Add(1)
	}
	c.life.pings = append(c.life.pings, time.Now())
	c.d.mu.Unlock()
	return c.busily(func() error { return c.fakeConn.Ping(ctx) })
}

func (c *diaryConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (res driver.Result, err error) {
	err = c.busily(func() error { res, err = c.fakeConn.ExecContext(ctx, query, args); return err })
	return res, err
}

func (c *diaryConn) Prepare(query string) (s driver.Stmt, err error) {
	err = c.busily(func() error { s, err = c.fakeConn.Prepare(query); return err })
	if err != nil {
		return nil, err
	}
	c.d.statements.Add(1)
	return &diaryStmt{s, c}, nil
}

func (c *diaryConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	return &noopRows{}, nil
}

type diaryStmt struct {
	driver.Stmt
	c *diaryConn
}

func (s *diaryStmt) Exec([]driver.Value) (driver.Result, error) {
	return s.c.ExecContext(context.Background(), "prepared", nil)
}

func (s *diaryStmt) Close() error {
	return s.c.busily(func() error {
		if !s.c.closed.Load() {
			s.c.d.statements.Add(-1)
		}
		return s.Stmt.Close()
	})
}

// isSound fails the test if a driver saw what none must see.
func (d *diary) isSound(t *testing.T) {
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

// openDiary opens a pool of the defaults as changed by change.
func openDiary(t testing.TB, d *diary, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg := livepool.NewConfig()
	cfg.Logger = slog.New(slog.DiscardHandler)
	if change != nil {
		change(cfg)
	}
	p, err := livepool.OpenConnector(d, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// closed closes the pool, after which nothing is open.
func (d *diary) closed(t *testing.T, p *livepool.Pool) {
	t.Helper()
	p.Close()
	if n := d.open(); n != 0 {
		t.Errorf("%d connections open after Close", n)
	}
	d.isSound(t)
}

// tellsTruth compares the pool's own account with the database's.
func (d *diary) tellsTruth(t *testing.T, p *livepool.Pool) {
	t.Helper()
	synctest.Wait()
	s := p.Stats()
	if n := d.open(); s.OpenConnections != n || s.Idle != n-s.InUse {
		t.Errorf("%d connections are open; the pool says %d, of which %d in use and %d idle", n, s.OpenConnections, s.InUse, s.Idle)
	}
}

// takes takes n connections, uses each and returns which they are.
func takes(t testing.TB, db *sql.DB, n int) (held []*sql.Conn, ids []int64) {
	t.Helper()
	for range n {
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, ids = append(held, c), append(ids, servedBy(t, c))
	}
	return held, ids
}

func giveBack(held []*sql.Conn) {
	for _, c := range held {
		c.Close()
	}
}

// concurrently has n callers take a connection each at the same time.
func concurrently(t testing.TB, p *livepool.Pool, n int) []*sql.Conn {
	held := make([]*sql.Conn, n)
	var wg sync.WaitGroup
	for i := range held {
		wg.Go(func() {
			c, _ := takes(t, p.DB, 1)
			held[i] = c[0]
		})
	}
	wg.Wait()
	return held
}
