package storm

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// Migrations is a tool that applies three migrations, which make example_accounts, give it a
// column, and make and fill example_currencies.
type Migrations struct {
	Lock    string // an expression that is the name of the lock that it holds meanwhile
	Applied string // a query for what it has noted of those it has applied
	Resumes bool   // it goes on by itself when its connection is lost between two migrations
	// Up applies them, and calls between after the first, and after the second. Those that
	// were applied already are passed over.
	Up func(ctx context.Context, p *livepool.Pool, between func(applied int)) error
}

// The schema afterwards, and what is in it.
const (
	columns = `SELECT GROUP_CONCAT(table_name, '.', column_name ORDER BY table_name, ordinal_position SEPARATOR ' ')
		FROM information_schema.columns WHERE table_schema = 'test' AND table_name LIKE 'example%'`
	allColumns = "example_accounts.id example_accounts.balance example_accounts.owner example_currencies.code example_currencies.digits"
	currencies = "SELECT GROUP_CONCAT(code, digits ORDER BY code) FROM test.example_currencies"
)

// TestMigrations runs a tool of the table on a server of each kind. It is slow after the first
// migration, so that the server would close its connection, and the lock would be free; after
// the second the server is killed, and started again. Program is what the example's main runs.
func TestMigrations(t *testing.T, name string, program func(ctx context.Context, dsn string) error, m Migrations) {
	i := slices.IndexFunc(Tools, func(tool Tool) bool { return tool.Name == name })
	mustBeBuiltWith(t, Tools[i].Module)
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel() // it mostly waits
			s := servertest.Run(t, kind, "--wait-timeout=4")
			m.test(t, s)
			before := m.applied(t, s)
			if err := program(t.Context(), s.DSN()); err != nil {
				t.Errorf("the program, which has nothing to do: %v", err)
			}
			if after := m.applied(t, s); after != before {
				t.Errorf("a run that had nothing to do has left %q, where %q was", after, before)
			}
			checkSchema(t, s)
			if err := s.Exec("DROP DATABASE test; CREATE DATABASE test"); err != nil {
				t.Fatal(err)
			}
			if err := program(t.Context(), s.DSN()); err != nil {
				t.Errorf("the program, with everything to do: %v", err)
			}
			checkSchema(t, s)
		})
	}
}

// test applies the migrations, with what happens in between.
func (m Migrations) test(t *testing.T, s *server.Server) {
	p := open(t, s, func(c *livepool.Config) {
		c.MySQL.MultiStatements, c.KeepAlive = true, livepool.NewConfig().KeepAlive
	})
	happened := 0
	err := m.Up(t.Context(), p, func(applied int) {
		happened++
		switch applied {
		case 1:
			holder := m.holder(t, s)
			time.Sleep(9 * time.Second) // more than twice wait_timeout
			if now := m.holder(t, s); holder == 0 || now != holder {
				t.Errorf("connection %d has held the lock, and after nine seconds without a statement %d does", holder, now)
			}
		case 2:
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
			if err := s.Start(); err != nil {
				t.Error(err)
			}
		}
	})
	if happened != 2 {
		t.Fatalf("%d of two things have happened to it: %v", happened, err)
	}
	if (err == nil) != m.Resumes {
		t.Errorf("the server was restarted between two migrations: %v", err)
	}
	if err != nil {
		t.Log(err)
		if err := m.Up(t.Context(), p, func(int) {}); err != nil {
			t.Errorf("the next run: %v", err)
		}
	}
	checkSchema(t, s)
	labtest.Eventually(t, "the lock is free", func() bool { return m.holder(t, s) == 0 })
}

// holder is the connection that has the lock, 0 for none.
func (m Migrations) holder(t *testing.T, s *server.Server) (id int) {
	if err := s.QueryRow("SELECT COALESCE(IS_USED_LOCK("+m.Lock+"), 0)", &id); err != nil {
		t.Error(err)
	}
	return id
}

func (m Migrations) applied(t *testing.T, s *server.Server) (noted string) {
	if err := s.QueryRow(m.Applied, &noted); err != nil {
		t.Error(err)
	}
	return noted
}

func checkSchema(t *testing.T, s *server.Server) {
	t.Helper()
	for query, want := range map[string]string{columns: allColumns, currencies: "EUR2,JPY0"} {
		var got string
		if err := s.QueryRow(query, &got); err != nil || got != want {
			t.Errorf("the schema is %q, %v, want %q", got, err, want)
		}
	}
}
