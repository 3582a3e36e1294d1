package frameworks_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// item is a row of what each framework maps by itself.
type item struct {
	V    int       `bun:",pk"       db:"v"             xorm:"pk 'v'"`
	Big  uint64    `db:"big"`
	Note *string   `bun:",nullzero" db:"note"`
	At   time.Time `db:"at"         xorm:"DATETIME(6)"`
}

// TableName is for xorm; bun makes the same of the type's name.
func (item) TableName() string { return "items" }

const createItems = "CREATE TABLE items (v INT PRIMARY KEY, big BIGINT UNSIGNED NOT NULL, note VARCHAR(20), at DATETIME(6) NOT NULL)"

func newItem(v int) *item {
	i := &item{V: v, Big: math.MaxInt64 - uint64(v), At: time.Date(2026, 11, 26, 1, 2, 3, 456789000, time.UTC)}
	if v%2 == 0 {
		note := fmt.Sprint("it's ", v)
		i.Note = &note
	}
	return i
}

// A framework is what one does with each of them. None knows of livepool.
type framework interface {
	insert(ctx context.Context, i *item) error
	all(ctx context.Context) ([]item, error)
	// inTx inserts in a transaction of its own, which is committed if end returns nil.
	inTx(ctx context.Context, i *item, end func() error) error
}

// frameworks open each on a *sql.DB.
var frameworks = []struct {
	name string
	open func(*sql.DB) (framework, error)
}{
	{"sqlx", openSqlx},
	{"bun", openBun},
	{"xorm", openXorm},
	{"goqu", openGoqu},
	{"ent", openEnt},
}

// Frameworks in a unit of work, by Session.DB: what they commit is committed with the
// unit or not at all, what they roll back is not, and a unit that is run again has its
// rows once.
func TestFrameworksInAUnit(t *testing.T) {
	refused := errors.New("refused")
	succeed := func() error { return nil }
	refuse := func() error { return refused }

	cases := []struct {
		name     string
		unit     func(f framework, u *unit) error
		want     error
		rows     []int
		attempts int
	}{
		{"committed", func(f framework, u *unit) error {
			return errors.Join(
				f.insert(u.ctx, newItem(1)),
				f.inTx(u.ctx, newItem(2), succeed),
				isRefused(f.inTx(u.ctx, newItem(3), refuse), refused),
				f.insert(u.ctx, newItem(4)),
				hasItems(u.ctx, f, 1, 2, 4))
		}, nil, []int{1, 2, 4}, 1},

		{"undone", func(f framework, u *unit) error {
			if err := errors.Join(f.insert(u.ctx, newItem(1)), f.inTx(u.ctx, newItem(2), succeed)); err != nil {
				return err
			}
			return refused
		}, refused, nil, 1},

		{"killed between transactions", func(f framework, u *unit) error {
			if err := f.inTx(u.ctx, newItem(1), succeed); err != nil {
				return err
			}
			if err := u.killOnce(); err != nil {
				return err
			}
			return f.inTx(u.ctx, newItem(2), succeed)
		}, nil, []int{1, 2}, 2},

		{"killed in a transaction", func(f framework, u *unit) error {
			if err := f.insert(u.ctx, newItem(1)); err != nil {
				return err
			}
			return f.inTx(u.ctx, newItem(2), u.killOnce)
		}, nil, []int{1, 2}, 2},

		{"killed, and nobody told", func(f framework, u *unit) error {
			_ = f.inTx(u.ctx, newItem(1), u.killOnce)
			_ = f.insert(u.ctx, newItem(2))
			return nil
		}, nil, []int{1, 2}, 2},
	}
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := openItems(t, s)
		for _, fw := range frameworks {
			onPool, err := fw.open(p.DB)
			if err != nil {
				t.Fatal(err)
			}
			// xorm closes the *sql.DB when its engine is garbage.
			defer runtime.KeepAlive(onPool)
			for _, c := range cases {
				t.Run(fw.name+"/"+c.name, func(t *testing.T) {
					attempts := 0
					err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						attempts++
						f, err := fw.open(s.DB())
						if err != nil {
							return err
						}
						return c.unit(f, &unit{ctx, p, s})
					})
					if !errors.Is(err, c.want) || attempts != c.attempts {
						t.Errorf("%d attempts, error %v; want %d, %v", attempts, err, c.attempts, c.want)
					}
					if err := hasItems(t.Context(), onPool, c.rows...); err != nil {
						t.Error(err)
					}
					if _, err := p.Exec("DELETE FROM items"); err != nil {
						t.Fatal(err)
					}
				})
			}
		}
	})
}

// openItems opens a pool on a server with an empty table of items.
func openItems(t *testing.T, s *server.Server) *livepool.Pool {
	t.Helper()
	cfg, err := driver.ParseDSN(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	cfg.ParseTime = true
	p, err := livepool.Open(cfg.FormatDSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	if _, err := p.Exec(createItems); err != nil {
		t.Fatal(err)
	}
	return p
}

// unit is an attempt that a test can do harm to.
type unit struct {
	ctx context.Context
	p   *livepool.Pool
	s   *livepool.Session
}

// killOnce kills the connection of the first attempt, by another one.
func (u *unit) killOnce() error {
	if u.s.Attempt() > 1 {
		return nil
	}
	var id int
	if err := u.s.DB().QueryRowContext(u.ctx, "SELECT CONNECTION_ID()").Scan(&id); err != nil {
		return err
	}
	_, err := u.p.Exec(fmt.Sprint("KILL ", id))
	return err
}

func isRefused(err, refused error) error {
	if errors.Is(err, refused) {
		return nil
	}
	return fmt.Errorf("the transaction that was refused says %w", err)
}

// hasItems says what is wrong with the table, as the framework sees it.
func hasItems(ctx context.Context, f framework, want ...int) error {
	got, err := f.all(ctx)
	if err != nil {
		return err
	}
	same := slices.EqualFunc(got, want, func(g item, v int) bool {
		w := newItem(v)
		return g.V == v && g.Big == w.Big && g.At.Equal(w.At) && (g.Note == nil) == (w.Note == nil) && (g.Note == nil || *g.Note == *w.Note)
	})
	if !same {
		return fmt.Errorf("the items are %v, want %v", got, want)
	}
	return nil
}
