package connector

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
	"github.com/livepool/livepool/internal/clock"
	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/lab/fakedb"
)

// maintainDB is a database whose connections are looked after, and closed, under the
// eyes of a test. Its zero value works.
type maintainDB struct {
	mu    sync.Mutex
	conns []*maintainConn

	// When set, they are called in the middle of it.
	onConnect   func(c *maintainConn)
	onClose     func(c *maintainConn)
	onStmtClose func(c *maintainConn)
}

type maintainConn struct {
	db       *maintainDB
	id       int
	closed   atomic.Bool
	prepared atomic.Int64
}

func (w *maintainDB) Connect(context.Context) (driver.Conn, error) {
	w.mu.Lock()
	c := &maintainConn{db: w, id: len(w.conns) + 1}
	w.conns = append(w.conns, c)
	w.mu.Unlock()
	if w.onConnect != nil {
		w.onConnect(c)
	}
	return c, nil
}

func (w *maintainDB) Driver() driver.Driver { return nil }

func (w *maintainDB) all() []*maintainConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*maintainConn(nil), w.conns...)
}

func (w *maintainDB) open() (n int) {
	for _, c := range w.all() {
		if !c.closed.Load() {
			n++
		}
	}
	return n
}

func (c *maintainConn) Close() error {
	if c.db.onClose != nil {
		c.db.onClose(c)
	}
	c.closed.Store(true)
	return nil
}

func (c *maintainConn) Begin() (driver.Tx, error) {
	return nil, errors.New("maintainDB: no transactions")
}

func (c *maintainConn) Prepare(string) (driver.Stmt, error) {
	c.prepared.Add(1)
	return maintainStmt{c}, nil
}

type maintainStmt struct{ c *maintainConn }

func (s maintainStmt) NumInput() int { return 0 }
func (s maintainStmt) Close() error {
	if s.c.db.onStmtClose != nil {
		s.c.db.onStmtClose(s.c)
	}
	return nil
}

// errMaintainConnClosed is no driver.ErrBadConn, on which database/sql would prepare
// the statement elsewhere by itself.
var errMaintainConnClosed = errors.New("maintainDB: a statement of a closed connection")

func (s maintainStmt) Exec([]driver.Value) (driver.Result, error) {
	if s.c.closed.Load() {
		return nil, errMaintainConnClosed
	}
	return driver.RowsAffected(s.c.id), nil
}
func (s maintainStmt) Query([]driver.Value) (driver.Rows, error) {
	return nil, errors.New("maintainDB: no rows")
}

func (w *maintainDB) pool(t *testing.T, change func(*Settings)) *testPool {
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

// execOn runs a statement and returns on which connection.
func execOn(t *testing.T, run func() (sql.Result, error)) int64 {
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

// returnsSoon fails the test if f takes long.
func returnsSoon(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Errorf("%s has to wait", what)
	}
}

// A checkout waits for the end of a reservation: the link may change until
// then, and its end makes the connection idle.
func TestCheckoutWaitsForAReservation(t *testing.T) {
	c := &conn{ctr: &Connector{}}
	c.state.Store(idle)
	started, leave := make(chan struct{}), make(chan struct{})
	var reserver sync.WaitGroup
	reserver.Go(func() {
		c.reserveIdle(func() { close(started); <-leave })
	})
	<-started
	claimed := make(chan struct{})
	go func() { c.acquire(t.Context()); close(claimed) }()
	select {
	case <-claimed:
		t.Error("a connection was handed out during a reservation")
	case <-time.After(50 * time.Millisecond):
	}
	close(leave)
	<-claimed
	reserver.Wait()
	if got := c.state.Load(); got != inUse {
		t.Errorf("the state is %d, want in use: the next reservation would take it from its user", got)
	}
	if c.reserveIdle(func() {}) {
		t.Error("a connection in use was reserved")
	}
}

// A checkout of a connection that is borrowed for a side query waits for its return.
// If its context ends first it leaves the link behind; there is no ping that could be late.
func TestCheckoutOfAConnectionThatIsBorrowed(t *testing.T) {
	lend := func(c *conn) *reservation {
		c.state.Store(idle)
		v := &reservation{done: make(chan struct{})}
		c.reserveIdle(func() { c.reservation = v })
		c.releaseWaiters()
		return v
	}
	left := conn{ctr: &Connector{}}
	v := lend(&left)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := left.ResetSession(ctx); err != driver.ErrBadConn || !left.needsCheck {
		t.Errorf("a caller gets a connection without a link, unchecked %v: %v", left.needsCheck, err)
	}
	if !left.unconnected || left.reservation != nil || left.release(v, link{}, true) {
		t.Error("the link is still the connection's after its caller had no time to wait for it")
	}
	back := conn{ctr: &Connector{}}
	v = lend(&back)
	claimed := make(chan struct{})
	go func() { back.acquire(t.Context()); close(claimed) }()
	select {
	case <-claimed:
		t.Error("a connection was handed out while it was borrowed")
	case <-time.After(50 * time.Millisecond):
	}
	if !back.release(v, link{}, true) {
		t.Error("a connection that is waited for is not taken back")
	}
	<-claimed
	if back.unconnected || back.state.Load() != inUse {
		t.Errorf("claimed without its link %v, in state %d", back.unconnected, back.state.Load())
	}
}

// The link of a connection is not taken away while a statement on it is being
// closed, which database/sql does on idle connections.
func TestReservationWaitsForAStatementBeingClosed(t *testing.T) {
	closing, finish := make(chan struct{}), make(chan struct{})
	var once sync.Once
	w := &maintainDB{}
	p := w.pool(t, nil)
	s, err := p.Prepare("DO 1")
	if err != nil {
		t.Fatal(err)
	}
	w.onStmtClose = func(*maintainConn) { once.Do(func() { close(closing); <-finish }) }
	var closed sync.WaitGroup
	closed.Go(func() { s.Close() })
	<-closing
	p.ctr.RecycleAll()
	time.Sleep(50 * time.Millisecond)
	if w.all()[0].closed.Load() {
		t.Error("the connection was closed in the middle of a statement's Close")
	}
	close(finish)
	closed.Wait()
	returnsSoon(t, "the replacement", func() {
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
	w := &maintainDB{onClose: func(*maintainConn) { once.Do(func() { close(closing); <-finish }) }}
	p := w.pool(t, nil)
	s, err := p.Prepare("DO 1")
	if err != nil {
		t.Fatal(err)
	}
	p.ctr.RecycleAll()
	<-closing
	returnsSoon(t, "sql.Stmt.Close", func() { s.Close() })
	returnsSoon(t, "Stats", func() { p.Stats() })
	returnsSoon(t, "a statement", func() { p.Exec("DO 1") })
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
				w := &maintainDB{onConnect: func(c *maintainConn) {
					if c.id > 1 {
						time.Sleep(time.Second)
					}
				}}
				p := w.pool(t, nil)
				fakedb.Warm(t, p.DB, 1)
				p.ctr.RecycleAll()
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
		w := &maintainDB{}
		p := w.pool(t, nil)
		s, err := p.Prepare("DO 1")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		p.ctr.RecycleAll()
		synctest.Wait()
		for range 3 {
			if id := execOn(t, func() (sql.Result, error) { return s.Exec() }); id != 2 {
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
		change func(*Settings)
		pass   func(*testPool)
	}{
		{"past its age limit",
			func(c *Settings) { c.Recycle, c.RecycleJitter = time.Minute, 0 },
			// Between two looks of the maintainer's, which come every three seconds.
			func(*testPool) { time.Sleep(2*time.Minute + time.Second) }},
		{"in use when Recycle was called",
			func(c *Settings) { c.Recycle = 0 },
			func(p *testPool) { p.ctr.RecycleAll() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &maintainDB{}
				p := w.pool(t, tt.change)
				held, _ := fakedb.Take(t, p.DB, 1)
				c := held[0]
				tt.pass(p)
				synctest.Wait()
				fakedb.ServedBy(t, c)
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
		w := &maintainDB{}
		p := w.pool(t, func(c *Settings) { c.Recycle = 0 })
		fakedb.Warm(t, p.DB, 5)
		p.ctr.RecycleAll()
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
		ctr, err := New(fakeConnector{}, cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctr.IsMySQL = true
		c := &conn{ctr: ctr}
		c.attach(link{host: &host{}, driverConn: driverconn.New(refusesBegin{}), expires: clock.Never})
		if _, err := c.BeginTx(t.Context(), driver.TxOptions{Isolation: level}); err == nil {
			t.Fatal("the transaction was not refused")
		}
		if c.dirty != (level != 0) {
			t.Errorf("level %d: closed on return %v", level, c.dirty)
		}
	}
}
