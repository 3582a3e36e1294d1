// Package storm is what the tests of all frameworks have in common: each is run on real
// servers that close its idle connections and are killed in the middle of its work, and
// what it was told is held against the rows that are there.
package storm

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Item is a row of the table items, which each framework maps by a type of its own. That
// has these fields with its own tags, so that the one converts to the other.
type Item struct {
	ID   int64
	V    int64
	Big  uint64
	Note *string
	At   time.Time
}

const createItems = `CREATE TABLE items (id BIGINT AUTO_INCREMENT PRIMARY KEY, v BIGINT NOT NULL,
	big BIGINT UNSIGNED NOT NULL, note VARCHAR(20), at DATETIME(6) NOT NULL, KEY (v))`

// newItem is the row that belongs to v.
func newItem(v int64) *Item {
	i := &Item{V: v, Big: math.MaxInt64 - uint64(v), At: time.Date(2026, 11, 26, 1, 2, 3, 456789000, time.UTC)}
	if v%2 == 0 {
		note := fmt.Sprint("it's ", v)
		i.Note = &note
	}
	return i
}

// A DB is a framework at work, on the pool or in a unit.
type DB interface {
	Insert(ctx context.Context, i *Item) error
	Find(ctx context.Context, v int64) ([]Item, error)
	// Transaction runs fn in a transaction of the framework's own, which it commits if fn
	// returns nil. What has no transaction inside a transaction returns errors.ErrUnsupported.
	Transaction(ctx context.Context, fn func(DB) error) error
}

// A Mode is a way to use a framework. Open opens it on the pool, once; the function that it
// returns gives the framework in a unit. With Wrap, which is its Config.Wrap, the mode has a
// pool of its own.
type Mode struct {
	Name string
	Open func(p *livepool.Pool) (DB, InUnit, error)
	Wrap func(driver.Connector) driver.Connector
}

// InUnit gives the framework in a unit.
type InUnit = func(context.Context, *livepool.Session) (DB, error)

// OnDB is the mode of a framework that takes any *sql.DB: the pool's, and a unit's Session.DB.
func OnDB(name string, open func(context.Context, *sql.DB) (DB, error)) Mode {
	return Mode{Name: name, Open: func(p *livepool.Pool) (DB, InUnit, error) {
		onPool, err := open(context.Background(), p.DB)
		return onPool, func(ctx context.Context, s *livepool.Session) (DB, error) { return open(ctx, s.DB()) }, err
	}}
}

// opened is a mode on a pool.
type opened struct {
	name   string
	p      *livepool.Pool
	onPool DB
	inUnit InUnit
}

// Test runs a framework of the table on a server of each kind: units that are undone and
// connections that are killed, then connections that the server has closed, then a server
// that is killed and started again. Program is what the example's main runs.
func Test(t *testing.T, name string, program func(ctx context.Context, dsn string) error, modes ...Mode) {
	fw := find(t, name)
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it mostly waits
			testOn(t, fw, servertest.Run(t, kind, "--wait-timeout=2"), program, modes)
		})
	}
}

func testOn(t *testing.T, fw Framework, s *server.Server, program func(context.Context, string) error, modes []Mode) {
	if err := program(t.Context(), s.DSN()); err != nil {
		t.Errorf("the program: %v", err)
	}
	shared := open(t, s, nil)
	if _, err := shared.Exec(createItems); err != nil {
		t.Fatal(err)
	}
	all := make([]*opened, len(modes))
	for i, m := range modes {
		p := shared
		if m.Wrap != nil {
			p = open(t, s, func(c *livepool.Config) { c.Wrap = m.Wrap })
		}
		onPool, inUnit, err := m.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = &opened{m.Name, p, onPool, inUnit}
		t.Run(m.Name, func(t *testing.T) { testUnits(t, fw, all[i]) })
	}
	idle(t, s, all)
	restart(t, s, all)
}

// open opens a pool, changed if change is not nil, whose idle connections are left for the
// server to close. It waits for a server that starts slowly, because other tests run beside
// this one.
func open(t *testing.T, s *server.Server, change func(*livepool.Config)) *livepool.Pool {
	t.Helper()
	cfg, err := mysql.ParseDSN(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	cfg.ParseTime = true
	c, err := livepool.ParseDSN(cfg.FormatDSN() + "&pool_keepalive=0&pool_outage_wait=2m&pool_timeout=2m&pool_max_elapsed=2m")
	if err != nil {
		t.Fatal(err)
	}
	c.Logger = labtest.DiscardLogger
	if change != nil {
		change(c)
	}
	p, err := livepool.OpenConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// unit runs fn with the framework in a unit of work, and says in how many attempts.
func (o *opened) unit(ctx context.Context, fn func(context.Context, *livepool.Session, DB) error) (attempts int, err error) {
	err = o.p.WithSession(ctx, func(ctx context.Context, s *livepool.Session) error {
		attempts = s.Attempt()
		db, err := o.inUnit(ctx, s)
		if err != nil {
			return err
		}
		return fn(ctx, s, db)
	}, livepool.VerifyCommit())
	return attempts, err
}

var errRefused = errors.New("refused")

// refused runs fn in a transaction that is undone, because of an error that comes back.
func refused(ctx context.Context, db DB, fn func(DB) error) error {
	err := db.Transaction(ctx, func(db DB) error {
		if err := fn(db); err != nil {
			return err
		}
		return errRefused
	})
	switch {
	case errors.Is(err, errRefused):
		return nil
	case err == nil:
		return errors.New("a transaction whose function was refused has succeeded")
	}
	return err
}

// mustHave says what is wrong with the rows of the values, as the framework sees them.
func mustHave(ctx context.Context, db DB, want map[int64]int) error {
	for v, n := range want {
		items, err := db.Find(ctx, v)
		if err != nil {
			return err
		}
		if len(items) != n {
			return fmt.Errorf("%d rows of %d, want %d", len(items), v, n)
		}
		for _, i := range items {
			w := newItem(v)
			w.ID, i.At = i.ID, i.At.UTC()
			if i.ID == 0 || !reflect.DeepEqual(i, *w) {
				return fmt.Errorf("the row is %+v, want %+v", i, *w)
			}
		}
	}
	return nil
}

// rows are the values in the table, and how often each is there, as nobody but the server
// sees them.
func rows(t *testing.T, s *server.Server) map[int64]int {
	t.Helper()
	db, err := sql.Open("mysql", s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found, err := db.Query("SELECT v FROM items")
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	count := map[int64]int{}
	for found.Next() {
		var v int64
		if err := found.Scan(&v); err != nil {
			t.Fatal(err)
		}
		count[v]++
	}
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	return count
}

// killOnce kills the connection of the first attempt, by another one.
func killOnce(ctx context.Context, p *livepool.Pool, s *livepool.Session) error {
	if s.Attempt() > 1 {
		return nil
	}
	var id int
	if err := s.QueryRowContext(ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return err
	}
	_, err := p.Exec(fmt.Sprint("KILL ", id))
	return err
}

// idle has the server close the connections of all workers, who then work again.
func idle(t *testing.T, s *server.Server, all []*opened) {
	l := newLedger(t, all)
	l.everybodyWorks()
	labtest.AwaitDisconnect(t, s)
	if failed := l.everybodyWorks(); failed > 0 {
		t.Errorf("%d failed after the server had closed their idle connections", failed)
	}
	l.check(rows(t, s))
}

// restart kills the server under the workers.
func restart(t *testing.T, s *server.Server, all []*opened) {
	l := newLedger(t, all)
	labtest.RestartUnderWorkers(t, s, workers, l.work, func(time.Time) {}, time.Second)
	l.check(rows(t, s))
}
