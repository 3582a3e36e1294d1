package behaviour_test

// The commit table: what it must be, which one it is, and how it is purged.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

func emptyUnit(context.Context, *livepool.Session) error { return nil }

// A table made by hand that would skip units, or apply them twice, is refused
// before anything is applied.
func TestCommitTableThatCannotKeepThePromise(t *testing.T) {
	const time = ", committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)"
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		for says, ddl := range map[string]string{
			"MyISAM":        "(unit VARBINARY(255) NOT NULL PRIMARY KEY" + time + " ENGINE=MyISAM",
			"MEMORY":        "(unit VARBINARY(255) NOT NULL PRIMARY KEY" + time + " ENGINE=MEMORY",
			"different":     "(unit VARCHAR(255) CHARACTER SET latin1 NOT NULL PRIMARY KEY" + time,
			"has to be":     "(unit BINARY(255) NOT NULL PRIMARY KEY" + time,
			"10 bytes":      "(unit VARBINARY(10) NOT NULL PRIMARY KEY" + time,
			"no unique key": "(unit VARBINARY(255) NOT NULL, KEY (unit)" + time,
			"as a whole":    "(unit VARBINARY(255) NOT NULL, UNIQUE KEY (unit(5))" + time,
		} {
			if err := s.Exec("DROP TABLE IF EXISTS test.livepool_commits; CREATE TABLE test.livepool_commits " + ddl); err != nil {
				t.Fatal(err)
			}
			p := open(t, s.DSN(), "sql_mode=''")
			inner := func(ctx context.Context, _ *livepool.Session) error {
				return p.WithSession(ctx, labtest.Insert(2), livepool.Once("inner"))
			}
			for name, err := range map[string]error{
				"Once":         p.WithSession(t.Context(), labtest.Insert(1), livepool.Once("order 1")),
				"VerifyCommit": p.WithSession(t.Context(), labtest.Insert(1), livepool.VerifyCommit()),
				"inside":       p.WithSession(t.Context(), inner),
				"Create":       p.CreateCommitTable(t.Context()),
				"Purge":        func() error { _, err := p.PurgeCommits(t.Context(), 0); return err }(),
			} {
				if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "unit VARBINARY(255) NOT NULL PRIMARY KEY") {
					t.Errorf("%s: %s: %v", ddl, name, err)
				}
			}
			if n := count(t, s, "t"); n != 0 {
				t.Errorf("%s: %d rows", ddl, n)
			}
			// Mended, it is used at once.
			if err := s.Exec("DROP TABLE test.livepool_commits"); err != nil {
				t.Fatal(err)
			}
			if err := p.CreateCommitTable(t.Context()); err != nil {
				t.Error(err)
			}
			if err := p.WithSession(t.Context(), emptyUnit, livepool.Once("order 1")); err != nil {
				t.Error(err)
			}
			p.Close()
		}
	})
}

// The server makes another table of it than was asked for.
func TestCommitTableOfAnEnforcedEngine(t *testing.T) {
	s := servertest.Run(t, server.MariaDB, "--enforce-storage-engine=MyISAM", "--sql-mode=")
	p := open(t, s.AppDSN(s.Addr()), "")
	if err := p.CreateCommitTable(t.Context()); err == nil || !strings.Contains(err.Error(), "MyISAM") {
		t.Errorf("got %v", err)
	}
}

// It is looked at once for each server, and then costs nothing.
func TestCommitTableIsCheckedOnce(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		admin := open(t, s.DSN(), "")
		if err := admin.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		via := proxyTo(t, s)
		p := open(t, s.DSNVia(via.Addr()), "pool_size=0") // a new connection for each unit
		for round := range 2 {
			before := via.Counts().Query
			for i := range 3 {
				if err := p.WithSession(t.Context(), emptyUnit, livepool.Once(fmt.Sprint(round, i))); err != nil {
					t.Fatal(err)
				}
			}
			queries := via.Counts().Query - before
			before = via.Counts().Query
			for range 3 {
				if err := p.WithSession(t.Context(), labtest.Work); err != nil {
					t.Fatal(err)
				}
			}
			plain := via.Counts().Query - before
			t.Logf("three keyed units: %d queries, three others: %d", queries, plain)
			if round == 1 && queries != plain { // the key's insert in place of the statement
				t.Errorf("three keyed units: %d queries, three others: %d", queries, plain)
			}
		}
	})
}

// A snapshot that the unit around it takes later is not taken by the check.
func TestCheckOfTheCommitTableTakesNoSnapshot(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		admin := open(t, s.DSN(), "")
		if err := admin.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		var rows int
		if err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
			if err := p.WithSession(ctx, emptyUnit, livepool.Once("k")); err != nil {
				return err
			}
			if err := s.Exec("INSERT INTO test.t (v) VALUES (1)"); err != nil {
				return err
			}
			return outer.QueryRowContext(ctx, "SELECT COUNT(*) FROM t").Scan(&rows)
		}); err != nil || rows != 1 {
			t.Errorf("%d rows seen, want 1: %v", rows, err)
		}
	})
}

// Without the privilege, or without the table, the error says what to run.
func TestErrorsOfTheCommitTableHoldItsDDL(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, q := range []string{"CREATE USER reader IDENTIFIED BY 'pw'", "GRANT SELECT ON test.* TO reader",
			"CREATE USER writer IDENTIFIED BY 'pw'", "CREATE TABLE test.other (a INT)", "GRANT INSERT ON test.* TO writer"} {
			if err := s.Exec(q); err != nil {
				t.Fatal(err)
			}
		}
		as := func(user string) *livepool.Pool {
			my, err := mysql.ParseDSN(s.DSN())
			if err != nil {
				t.Fatal(err)
			}
			my.User, my.Passwd = user, "pw"
			return open(t, my.FormatDSN(), "")
		}
		reader, writer := as("reader"), as("writer")
		says := func(what string, err error, number uint16) {
			t.Helper()
			if !labtest.IsServerError(err, number) || !strings.Contains(err.Error(), "CREATE TABLE IF NOT EXISTS `test`.`livepool_commits`") {
				t.Errorf("%s: %v", what, err)
			}
		}
		says("no right to create", reader.CreateCommitTable(t.Context()), 1142)
		says("no table", writer.WithSession(t.Context(), emptyUnit, livepool.Once("k")), 1146)
		if err := open(t, s.DSN(), "").CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		says("no right to insert", reader.WithSession(t.Context(), emptyUnit, livepool.Once("k")), 1142)
		// Who may only insert is not shown the table everywhere, and is served.
		if err := writer.WithSession(t.Context(), emptyUnit, livepool.Once("k")); err != nil {
			t.Errorf("a user who may only insert: %v", err)
		}
	})
}

// The key goes where the DSN says, whatever the unit uses; without a schema there
// is an error.
func TestCommitTableIsThatOfTheDSN(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		if err := s.Exec("CREATE DATABASE other; CREATE TABLE other.livepool_commits (unit VARBINARY(255) PRIMARY KEY); CREATE DATABASE `my-shop`; CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)"); err != nil {
			t.Fatal(err)
		}
		p := open(t, s.DSN(), "")
		if err := p.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := p.WithSession(t.Context(), func(ctx context.Context, outer *livepool.Session) error {
				if _, err := outer.ExecContext(ctx, "USE other"); err != nil {
					return err
				}
				return p.WithSession(ctx, func(ctx context.Context, inner *livepool.Session) error {
					_, err := inner.ExecContext(ctx, "INSERT INTO test.t (v) VALUES (1)")
					return err
				}, livepool.Once("k"))
			}); err != nil {
				t.Error(err)
			}
		}
		if n, keys := count(t, s, "t"), count(t, s, "livepool_commits"); n != 1 || keys != 1 {
			t.Errorf("%d rows and %d keys, want one each", n, keys)
		}
		my, err := mysql.ParseDSN(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		my.DBName = "my-shop"
		shop := open(t, my.FormatDSN(), "")
		if err := errors.Join(shop.CreateCommitTable(t.Context()), shop.WithSession(t.Context(), emptyUnit, livepool.Once("k"))); err != nil {
			t.Error(err)
		}
		my.DBName = ""
		none := open(t, my.FormatDSN(), "")
		_, purge := none.PurgeCommits(t.Context(), 0)
		for _, err := range []error{none.CreateCommitTable(t.Context()), none.WithSession(t.Context(), emptyUnit, livepool.Once("k")), purge,
			none.WithSession(t.Context(), func(ctx context.Context, _ *livepool.Session) error {
				return none.WithSession(ctx, emptyUnit, livepool.Once("k"))
			})} {
			if err == nil || !strings.Contains(err.Error(), "names no database") {
				t.Errorf("no schema: %v", err)
			}
		}
		named := open(t, my.FormatDSN(), "pool_commit_table=test.livepool_commits")
		if err := named.WithSession(t.Context(), emptyUnit, livepool.Once("k")); err != nil {
			t.Error(err)
		}
		if n, err := named.PurgeCommits(t.Context(), 0); n != 1 || err != nil {
			t.Errorf("purged %d, %v, want 1", n, err)
		}
	})
}

// oldKeys puts n keys into the table, each an hour old.
func oldKeys(t *testing.T, s *server.Server, n int) {
	t.Helper()
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf("('old %06d', NOW() - INTERVAL 1 HOUR)", i)
	}
	if err := s.Exec("INSERT INTO test.livepool_commits VALUES " + strings.Join(values, ",")); err != nil {
		t.Fatal(err)
	}
}

// A purge waits for no unit that is running, and none waits for it; it takes all
// old keys and no other.
func TestPurgeBesideRunningUnits(t *testing.T) {
	for _, params := range []string{"", "autocommit=0", "transaction_isolation='SERIALIZABLE'"} {
		servertest.Each(t, func(t *testing.T, s *server.Server) {
			params := params
			if s.Kind() == server.MariaDB {
				params = strings.Replace(params, "transaction_", "tx_", 1)
			}
			p := open(t, s.DSN(), params)
			if err := p.CreateCommitTable(t.Context()); err != nil {
				t.Fatal(err)
			}
			oldKeys(t, s, 450)
			inside := func(ctx context.Context, u *livepool.Session) error {
				start := time.Now()
				if n, err := p.PurgeCommits(ctx, 30*time.Minute); n != 450 || err != nil {
					t.Errorf("%s: purged %d, %v, want 450", params, n, err)
				}
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("%s: the purge took %s: it has waited for a unit", params, took)
				}
				start = time.Now()
				for _, key := range []string{"a new one", "old 000100 and more", "old 1"} {
					if err := p.WithSession(ctx, emptyUnit, livepool.Once(key), livepool.RequiresNew()); err != nil {
						t.Errorf("%s: another unit: %v", params, err)
					}
				}
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("%s: three other units took %s", params, took)
				}
				return nil
			}
			// The key of the unit that is running lies among the old ones.
			if err := p.WithSession(t.Context(), inside, livepool.Once("old 000100x")); err != nil {
				t.Error(err)
			}
			if n := count(t, s, "livepool_commits"); n != 4 {
				t.Errorf("%s: %d keys are left, want 4", params, n)
			}
			if n, err := p.PurgeCommits(t.Context(), 30*time.Minute); n != 0 || err != nil {
				t.Errorf("%s: once more: purged %d, %v, want none", params, n, err)
			}
		}, "--innodb-lock-wait-timeout=50")
	}
}

// A purge whose connection is lost goes on, and says how many keys it has removed.
func TestPurgeWhoseConnectionIsLost(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		admin := open(t, s.DSN(), "")
		if err := admin.CreateCommitTable(t.Context()); err != nil {
			t.Fatal(err)
		}
		via := proxyTo(t, s)
		p := open(t, s.DSNVia(via.Addr()), "")
		for name, cut := range map[string]func() *proxy.Cut{
			"COMMIT, not arrived": func() *proxy.Cut { return via.CutBefore(proxy.QueryPrefix("COMMIT"), proxy.FIN) },
			"COMMIT, arrived":     func() *proxy.Cut { return via.CutAfter(proxy.QueryPrefix("COMMIT"), proxy.FIN) },
			"DELETE":              func() *proxy.Cut { return via.CutAfter(proxy.QueryPrefix("DELETE"), proxy.RST) },
		} {
			oldKeys(t, s, 250)
			cut()
			if n, err := p.PurgeCommits(t.Context(), 30*time.Minute); n != 250 || err != nil {
				t.Errorf("%s: purged %d, %v, want 250", name, n, err)
			}
			if n := count(t, s, "livepool_commits"); n != 0 {
				t.Errorf("%s: %d keys are left", name, n)
			}
		}
	})
}
