package livepool

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
)

// ward is a database whose connections are looked after, and closed, under the
// eyes of a test. Its zero value works.
type ward struct {
	mu    sync.Mutex
	conns []*wardConn

	// When set, they are called in the middle of it.
	connecting  func(c *wardConn)
	closing     func(c *wardConn)
	closingStmt func(c *wardConn)
}

type wardConn struct {
	db       *ward
	id       int
	closed   atomic.Bool
	prepared atomic.Int64
}

func (w *ward) Connect(context.Context) (driver.Conn, error) {
	w.mu.Lock()
	c := &wardConn{db: w, id: len(w.conns) + 1}
	w.conns = append(w.conns, c)
	w.mu.Unlock()
	if w.connecting != nil {
		w.connecting(c)
	}
	return c, nil
}

func (w *ward) Driver() driver.Driver { return nil }

func (w *ward) all() []*wardConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*wardConn(nil), w.conns...)
}

func (w *ward) open() (n int) {
	for _, c := range w.all() {
		if !c.closed.Load() {
			n++
		}
	}
	return n
}

func (c *wardConn) Close() error {
	if c.db.closing != nil {
		c.db.closing(c)
	}
	c.closed.Store(true)
	return nil
}

func (c *wardConn) Begin() (driver.Tx, error) { return nil, errors.New("ward: no transactions") }

func (c *wardConn) Prepare(string) (driver.Stmt, error) {
	c.prepared.Add(1)
	return wardStmt{c}, nil
}

type wardStmt struct{ c *wardConn }

func (s wardStmt) NumInput() int { return 0 }
func (s wardStmt) Close() error {
	if s.c.db.closingStmt != nil {
		s.c.db.closingStmt(s.c)
	}
	return nil
}

// errWardClosed is no driver.ErrBadConn, on which database/sql would prepare
// the statement elsewhere by itself.
var errWardClosed = errors.New("ward: a statement of a closed connection")

func (s wardStmt) Exec([]driver.Value) (driver.Result, error) {
	if s.c.closed.Load() {
		return nil, errWardClosed
	}
	return driver.RowsAffected(s.c.id), nil
}
func (s wardStmt) Query([]driver.Value) (driver.Rows, error) { return nil, errors.New("ward: no rows") }

func (w *ward) pool(t *testing.T, change func(*settings)) *testPool {
	t.Helper()
	cfg := defaults()
	if change != nil {
		change(cfg)
	}
	p, err := openTest(w, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// served runs a statement and returns on which connection.
func served(t *testing.T, run func() (sql.Result, error)) int64 {
	t.Helper()
	res, err := run()
	if err != nil {
		t.Fatal(err)
	}
	id, err := res.RowsAffected()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// hold takes n connections and uses them.
func hold(t *testing.T, p *testPool, n int) []*sql.Conn {
	t.Helper()
	conns := make([]*sql.Conn, n)
	for i := range conns {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		served(t, func() (sql.Result, error) { return c.ExecContext(t.Context(), "DO 1") })
		conns[i] = c
	}
	return conns
}

// returned takes n connections and returns them to the pool.
func returned(t *testing.T, p *testPool, n int) {
	t.Helper()
	for _, c := range hold(t, p, n) {
		c.Close()
	}
}

// soon fails the test if f takes long.
func soon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Errorf("%s has to wait", what)
	}
}

// A checkout waits for the end of a visit: the link may change under it until
// then, and the end of the visit makes the connection an idle one.
func TestCheckoutWaitsForAVisit(t *testing.T) {
	c := &conn{ctr: &connector{}}
	c.state.Store(idle)
	visiting, leave := make(chan struct{}), make(chan struct{})
	var visit sync.WaitGroup
	visit.Go(func() {
		c.visitIdle(func() { close(visiting); <-leave })
	})
	<-visiting
	claimed := make(chan struct{})
	go func() { c.claim(t.Context()); close(claimed) }()
	select {
	case <-claimed:
		t.Error("a connection was handed out in the middle of a visit")
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	<-claimed
	visit.Wait()
	if got := c.state.Load(); got != inUse {
		t.Errorf("the state is %d, want in use: the next visit would take it from its user", got)
	}
	if c.visitIdle(func() {}) {
		t.Error("a connection in use was visited")
	}
}

// Who meets a connection that is lent for a look beside it waits for its return,
// and with his context ended leaves its link behind; there is no ping to be hurried.
func TestCheckoutOfAConnectionThatIsLent(t *testing.T) {
	lend := func(c *conn) *visit {
		c.state.Store(idle)
		v := &visit{over: make(chan struct{})}
		c.visitIdle(func() { c.visit = v })
		c.doubtVisit()
		return v
	}
	left := conn{ctr: &connector{}}
	v := lend(&left)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := left.ResetSession(ctx); err != driver.ErrBadConn || !left.unchecked {
		t.Errorf("a caller gets a connection without a link, unchecked %v: %v", left.unchecked, err)
	}
	if !left.shell || left.visit != nil || left.leave(v, link{}, true) {
		t.Error("the link is still the connection's after its caller had no time to wait for it")
	}
	back := conn{ctr: &connector{}}
	v = lend(&back)
	claimed := make(chan struct{})
	go func() { back.claim(t.Context()); close(claimed) }()
	select {
	case <-claimed:
		t.Error("a connection was handed out while it was lent")
	case <-time.After(50 * time.Millisecond):
	}
	if !back.leave(v, link{}, true) {
		t.Error("a connection that is waited for is not taken back")
	}
	<-claimed
	if back.shell || back.state.Load() != inUse {
		t.Errorf("claimed without its link %v, in state %d", back.shell, back.state.Load())
	}
}

// The link of a connection is not taken away while a statement on it is being
// closed, which database/sql does on idle connections.
func TestVisitWaitsForAStatementBeingClosed(t *testing.T) {
	closing, finish := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w := &ward{}
	p := w.pool(t, nil)
	s, err := p.Prepare("DO 1")
	if err != nil {
		t.Fatal(err)
	}
	w.closingStmt = func(*wardConn) { once.Do(func() { close(closing); <-finish }) }
	var closed sync.WaitGroup
	closed.Go(func() { s.Close() })
	<-closing
	p.ctr.recycle()
	time.Sleep(50 * time.Millisecond)
	if w.all()[0].closed.Load() {
		t.Error("the connection was closed in the middle of a statement's Close")
	}
	close(finish)
	closed.Wait()
	soon(t, "the replacement", func() {
		for !w.all()[0].closed.Load() {
			time.Sleep(time.Millisecond)
		}
	})
}

// A connection that is slow to close is nobody's concern but the maintainer's.
// database/sql closes statements under the lock of the whole pool.
func TestSlowCloseOfAReplacedConnectionStallsNobody(t *testing.T) {
	closing, finish := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w := &ward{closing: func(*wardConn) { once.Do(func() { close(closing); <-finish }) }}
	p := w.pool(t, nil)
	s, err := p.Prepare("DO 1")
	if err != nil {
		t.Fatal(err)
	}
	p.ctr.recycle()
	<-closing
	soon(t, "sql.Stmt.Close", func() { s.Close() })
	soon(t, "Stats", func() { p.Stats() })
	soon(t, "a statement", func() { p.Exec("DO 1") })
	close(finish)
}

// A connection may be closed while its replacement is being opened; that one is
// then closed too.
func TestReplacementOfAConnectionThatIsGoneIsClosed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		close func(*testPool)
	}{
		{"the pool keeps it no longer", func(p *testPool) { p.SetMaxIdleConns(-1) }},
		{"the pool is closed", func(p *testPool) { p.DB.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &ward{connecting: func(c *wardConn) {
					if c.id > 1 {
						time.Sleep(time.Second)
					}
				}}
				p := w.pool(t, nil)
				returned(t, p, 1)
				p.ctr.recycle()
				synctest.Wait()
				if n := len(w.all()); n != 2 {
					t.Fatalf("%d connections opened, want the replacement under way", n)
				}
				tt.close(p)
				time.Sleep(2 * time.Second)
				synctest.Wait()
				if n := w.open(); n != 0 {
					t.Errorf("%d connections open, want none", n)
				}
			})
		})
	}
}

// A sql.Stmt knows nothing of the replacement: the statement is prepared again
// on the new link, once.
func TestStatementIsPreparedAgainOnTheReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ward{}
		p := w.pool(t, nil)
		s, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p.ctr.recycle()
		synctest.Wait()
		for range 3 {
			if id := served(t, func() (sql.Result, error) { return s.Exec() }); id != 2 {
				t.Errorf("served by connection %d, want the replacement", id)
			}
		}
		if n := w.all()[1].prepared.Load(); n != 1 {
			t.Errorf("prepared %d times on the replacement, want once", n)
		}
	})
}

// A connection whose time came while it was in use is closed by its return, and
// is not left for the maintainer to find.
func TestConnectionWhoseTimeIsUpIsClosedOnReturn(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*settings)
		pass   func(*testPool)
	}{
		{"past its age limit",
			func(c *settings) { c.Recycle, c.RecycleJitter = time.Minute, 0 },
			// Between two looks of the maintainer's, which come every three seconds.
			func(*testPool) { time.Sleep(2*time.Minute + time.Second) }},
		{"in use when Recycle was called",
			func(c *settings) { c.Recycle = 0 },
			func(p *testPool) { p.ctr.recycle() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &ward{}
				p := w.pool(t, tt.change)
				c := hold(t, p, 1)[0]
				tt.pass(p)
				synctest.Wait()
				served(t, func() (sql.Result, error) { return c.ExecContext(t.Context(), "DO 1") })
				if w.open() != 1 {
					t.Error("a connection was taken from its user")
				}
				c.Close()
				if !w.all()[0].closed.Load() {
					t.Error("still open after its return")
				}
			})
		})
	}
}

// Recycle does not wait for a checkout, nor for an age limit.
func TestRecycleReplacesTheIdleAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &ward{}
		p := w.pool(t, func(c *settings) { c.Recycle = 0 })
		returned(t, p, 5)
		p.ctr.recycle()
		synctest.Wait()
		all := w.all()
		for _, c := range all[:5] {
			if !c.closed.Load() {
				t.Errorf("connection %d is still open", c.id)
			}
		}
		if len(all) != 10 || w.open() != 5 {
			t.Errorf("%d connections opened, %d open, want five replaced by five", len(all), w.open())
		}
	})
}

// refusesBegin is a driver's connection on which a transaction is refused.
type refusesBegin struct{ driver.Conn }

func (refusesBegin) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return nil, &mysql.MySQLError{Number: 1637, Message: "Too many active concurrent transactions"}
}
func (refusesBegin) Close() error { return nil }

// The driver sets the level with a statement before START TRANSACTION: if that is
// refused, the level waits for the next transaction, which is another borrower's.
func TestIsolationOfATransactionThatWasRefusedReachesNobody(t *testing.T) {
	for _, level := range []driver.IsolationLevel{0, 6} {
		cfg := defaults()
		ctr, err := newConnector(fakeConnector{}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctr.mysql = true
		c := &conn{ctr: ctr}
		c.fill(link{inner: newInner(refusesBegin{}), expires: never})
		if _, err := c.BeginTx(t.Context(), driver.TxOptions{Isolation: level}); err == nil {
			t.Fatal("the transaction was not refused")
		}
		if c.stained != (level != 0) {
			t.Errorf("level %d: closed on return %v", level, c.stained)
		}
	}
}
