package behaviour_test

// Errors of statements that the function of a unit swallows, by their number and
// by the kind of statement. Whatever is swallowed, no half of a unit is committed
// that a correct program would not have meant.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// runSwallowing runs a unit that inserts 1, swallows what f says, inserts 2 and
// returns nil. It returns that error, the unit's, and how many of the two are there.
//
//lint:ignore ST1008 in the order in which they come about
func runSwallowing(t *testing.T, s *server.Server, p *livepool.Pool, f labtest.UnitFunc) (swallowed, unit error, rows int) {
	t.Helper()
	if err := s.Exec("DELETE FROM test.t WHERE v < 10"); err != nil {
		t.Fatal(err)
	}
	unit = p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, u); err != nil {
			return err
		}
		swallowed = f(ctx, u)
		labtest.Insert(2)(ctx, u)
		return nil
	}, livepool.MaxAttempts(1))
	return swallowed, unit, count(t, s, "t WHERE v < 10")
}

// checkAtomic fails the test unless the unit was applied as a whole, or, if it could
// not be, not at all.
func checkAtomic(t *testing.T, handled bool, swallowed, unit error, rows int) {
	t.Helper()
	if handled && (unit != nil || rows != 2) {
		t.Errorf("after %v the unit said %v, and %d rows are there; want nil and 2", swallowed, unit, rows)
	}
	if !handled && (!errors.Is(unit, livepool.ErrPoisoned) || !errors.Is(swallowed, errors.Unwrap(unit)) || rows != 0) {
		t.Errorf("after %v the unit said %v, and %d rows are there; want ErrPoisoned that tells why, and none", swallowed, unit, rows)
	}
}

func text(query string) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		_, err := u.ExecContext(ctx, query)
		return err
	}
}

func prepared(query string) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		st, err := u.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		defer st.Close()
		_, err = st.ExecContext(ctx)
		return err
	}
}

// read reads a result to its end.
func read(query string) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		rows, err := u.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return errors.Join(rows.Err(), rows.Close())
	}
}

func readPrepared(query string) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		st, err := u.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		defer st.Close()
		rows, err := st.QueryContext(ctx)
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return errors.Join(rows.Err(), rows.Close())
	}
}

var swallowTables = []string{
	"CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)",
	"INSERT INTO test.t (v) VALUES (11), (12), (13), (14)",
	"CREATE TABLE test.u (a INT PRIMARY KEY, b TINYINT NOT NULL DEFAULT 0, c VARCHAR(3), d DATE, e INT NOT NULL, f BIGINT UNSIGNED, CHECK (b < 100))",
	"INSERT INTO test.u (a, e, f) VALUES (1, 0, 18446744073709551615)",
	"CREATE TABLE test.child (a INT, FOREIGN KEY (a) REFERENCES test.u (a))",
	"INSERT INTO test.child VALUES (1)",
	"CREATE TABLE test.guarded (a INT)",
	"CREATE TRIGGER test.guard BEFORE INSERT ON test.guarded FOR EACH ROW SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'sold out'",
	"CREATE PROCEDURE test.half() BEGIN INSERT INTO test.t (v) VALUES (3); INSERT INTO test.u (a, e) VALUES (1, 0); END",
	"SET SESSION max_heap_table_size = 16384; CREATE TABLE test.small (a CHAR(250)) ENGINE = MEMORY",
	"CREATE USER 'limited'@'%' IDENTIFIED BY 'limited' WITH MAX_UPDATES_PER_HOUR 2",
	"GRANT ALL ON test.* TO 'limited'@'%'",
}

func TestSwallowedErrors(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		for _, q := range swallowTables {
			if err := s.Exec(q); err != nil {
				t.Fatal(q, err)
			}
		}
		p := open(t, s.DSN(), "pool_commit_table=c")
		for _, tt := range []struct {
			query   string
			handled bool
			numbers []uint16
		}{
			{"INSERT INTO u (a, e) VALUES (1, 0)", true, []uint16{1062}},
			{"INSERT INTO u (a, e) VALUES (7, 0), (8, 0), (1, 0)", true, []uint16{1062}},
			{"UPDATE u SET e = NULL WHERE a = 1", true, []uint16{1048}},
			{"INSERT INTO child VALUES (99)", true, []uint16{1452}},
			{"DELETE FROM u WHERE a = 1", true, []uint16{1451}},
			{"UPDATE u SET b = 1000", true, []uint16{1264}},
			{"INSERT INTO u (a, e) VALUES (2, 'abc')", true, []uint16{1366}},
			{"UPDATE u SET c = 'too long'", true, []uint16{1406}},
			{"UPDATE u SET f = f + 1", true, []uint16{1690}},
			{"UPDATE u SET e = 1 / 0", true, []uint16{1365}},
			{"UPDATE u SET b = 101", true, []uint16{3819, 4025}},
			{"UPDATE u SET d = '2020-99-99'", true, []uint16{1292}},
			{"INSERT INTO u (a) VALUES (3)", true, []uint16{1364}},
			{"INSERT INTO u (a, e) VALUES (3)", true, []uint16{1136}},
			{"UPDATE u SET e = (SELECT v FROM t)", true, []uint16{1242}},
			{"INSERT INTO guarded VALUES (1)", true, []uint16{1644}},
			{"INSERT INTO u SETT a = 1", true, []uint16{1064}},
			{"INSERT INTO nosuch VALUES (1)", true, []uint16{1146}},
			{"UPDATE u SET nosuch = 1", true, []uint16{1054}},
			{"UPDATE u SET e = nosuch()", true, []uint16{1305}},
			{"SET SESSION nosuch = 1", true, []uint16{1193}},

			{"INSERT INTO small SELECT 'x' FROM t a, t b, t c, t d, t e, t f", false, []uint16{1114}},
			{"ROLLBACK TO SAVEPOINT nosuch", false, []uint16{1305}},
			{"CALL half()", false, []uint16{1062}},
			{"CALL nosuch()", false, []uint16{1305}},
		} {
			for kind, f := range map[string]labtest.UnitFunc{"text": text(tt.query), "prepared": prepared(tt.query)} {
				swallowed, unit, rows := runSwallowing(t, s, p, f)
				known := false
				for _, n := range tt.numbers {
					known = known || labtest.IsServerError(swallowed, n)
				}
				if kind == "prepared" && (labtest.IsServerError(swallowed, 1295) || tt.query == "CALL nosuch()") {
					continue // nothing was sent but PREPARE
				}
				if !known {
					t.Errorf("%s, %s: %v, want one of %d", tt.query, kind, swallowed, tt.numbers)
				}
				checkAtomic(t, tt.handled, swallowed, unit, rows)
			}
		}
		for name, tt := range map[string]struct {
			params  string
			f       labtest.UnitFunc
			handled bool
		}{
			"rows that were read in part":           {"", read("SELECT v, IF(v < 14, 0, (SELECT v FROM t LIMIT 2)) FROM t ORDER BY v"), false},
			"rows that were read in part, prepared": {"", readPrepared("SELECT v, IF(v < 14, 0, (SELECT v FROM t LIMIT 2)) FROM t ORDER BY v"), false},
			"rows of which there were none":         {"", read("SELECT (SELECT v FROM t LIMIT 2)"), true},
			"the second of several statements":      {"multiStatements=true", text("INSERT INTO t (v) VALUES (3); INSERT INTO u (a, e) VALUES (1, 0)"), false},
			"the second of several results":         {"multiStatements=true", read("SELECT 1; INSERT INTO u (a, e) VALUES (1, 0)"), false},
			"EXECUTE": {"", func(ctx context.Context, u *livepool.Session) error {
				if _, err := u.ExecContext(ctx, "PREPARE s FROM 'INSERT INTO u (a, e) VALUES (1, 0)'"); err != nil {
					return nil
				}
				return text("EXECUTE s")(ctx, u)
			}, false},
			"no access": {"", func(ctx context.Context, u *livepool.Session) error {
				return text("UPDATE sys.sys_config SET value = 1")(ctx, u)
			}, false},
			"a rollback to a savepoint after a table that is full": {"", func(ctx context.Context, u *livepool.Session) error {
				err := errors.Join(text("SAVEPOINT a")(ctx, u), text("INSERT INTO small SELECT 'x' FROM t a, t b, t c, t d, t e, t f")(ctx, u))
				return errors.Join(err, text("ROLLBACK TO SAVEPOINT a")(ctx, u))
			}, true},
			"a rollback to a savepoint after a procedure": {"", func(ctx context.Context, u *livepool.Session) error {
				err := errors.Join(text("SAVEPOINT a")(ctx, u), text("CALL half()")(ctx, u))
				return errors.Join(err, text("ROLLBACK TO SAVEPOINT a")(ctx, u))
			}, true},
			"a unit inside, undone": {"", func(ctx context.Context, u *livepool.Session) error {
				return p.WithSession(ctx, text("CALL half()"))
			}, true},
		} {
			t.Run(name, func(t *testing.T) {
				pool := p
				dsn := s.DSN()
				if name == "no access" {
					dsn = s.AppDSN(s.Addr())
				}
				if tt.params != "" || name == "no access" {
					pool = open(t, dsn, tt.params)
				}
				swallowed, unit, rows := runSwallowing(t, s, pool, tt.f)
				if swallowed == nil {
					t.Fatal("nothing was swallowed")
				}
				t.Logf("%v; unit: %v", swallowed, unit)
				checkAtomic(t, tt.handled, swallowed, unit, rows)
			})
		}
		t.Run("a limit by the hour", func(t *testing.T) {
			limited := open(t, fmt.Sprintf("limited:limited@tcp(%s)/test?interpolateParams=true", s.Addr()), "pool_keepalive=0")
			swallowed, unit, rows := runSwallowing(t, s, limited, func(ctx context.Context, u *livepool.Session) error {
				return errors.Join(text("UPDATE u SET e = 1")(ctx, u), text("UPDATE u SET e = 2")(ctx, u))
			})
			if !labtest.IsServerError(swallowed, 1226) {
				t.Fatalf("got %v, want 1226", swallowed)
			}
			checkAtomic(t, false, swallowed.(interface{ Unwrap() []error }).Unwrap()[0], unit, rows)
		})
		t.Run("no more prepared statements", func(t *testing.T) {
			defer s.SetGlobal("max_prepared_stmt_count", 16382)
			swallowed, unit, rows := runSwallowing(t, s, p, func(ctx context.Context, u *livepool.Session) error {
				if err := s.SetGlobal("max_prepared_stmt_count", 0); err != nil {
					t.Fatal(err)
				}
				_, err := u.PrepareContext(ctx, "SELECT 1")
				return err
			})
			if !labtest.IsServerError(swallowed, 1461) {
				t.Fatalf("got %v, want 1461", swallowed)
			}
			checkAtomic(t, false, swallowed, unit, rows)
		})
	})
}

// failingReader gives rows, and then an error.
type failingReader struct{ rows io.Reader }

var errReader = errors.New("the file has a bad sector")

func (r *failingReader) Read(b []byte) (int, error) {
	n, err := r.rows.Read(b)
	if err == io.EOF {
		err = errReader
	}
	return n, err
}

// LOAD DATA LOCAL whose rows end with an error: the server has loaded those before
// it, and takes them for all there are.
func TestSwallowedErrorOfALoad(t *testing.T) {
	t.Parallel()
	mysql.RegisterReaderHandler("failing", func() io.Reader { return &failingReader{strings.NewReader("3\n4\n")} })
	mysql.RegisterReaderHandler("whole", func() io.Reader { return strings.NewReader("13\n14\n") })
	defer mysql.DeregisterReaderHandler("failing")
	defer mysql.DeregisterReaderHandler("whole")
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		withTable(t, s)
		wired, driversOwn := open(t, s.DSN(), ""), labtest.Open(t, driversConnector(t, s.DSN()), nil)
		for name, p := range map[string]*livepool.Pool{"livepool's dialer": wired, "OpenConnector": driversOwn} {
			for source, want := range map[string]error{"Reader::failing": errReader, "Reader::nosuch": nil, "/nonexistent": nil} {
				swallowed, unit, rows := runSwallowing(t, s, p, text("LOAD DATA LOCAL INFILE '"+source+"' INTO TABLE t (v)"))
				if swallowed == nil || want != nil && !errors.Is(swallowed, want) {
					t.Errorf("%s, %s: %v, want %v", name, source, swallowed, want)
				}
				checkAtomic(t, false, swallowed, unit, rows)
			}
			swallowed, unit, rows := runSwallowing(t, s, p, func(ctx context.Context, u *livepool.Session) error {
				err := errors.Join(text("SAVEPOINT a")(ctx, u), text("LOAD DATA LOCAL INFILE 'Reader::failing' INTO TABLE t (v)")(ctx, u))
				return errors.Join(err, text("ROLLBACK TO SAVEPOINT a")(ctx, u))
			})
			checkAtomic(t, true, swallowed, unit, rows)
			if swallowed, unit, rows = runSwallowing(t, s, p, text("LOAD DATA LOCAL INFILE 'Reader::whole' INTO TABLE t (v)")); swallowed != nil {
				t.Error(swallowed)
			}
			checkAtomic(t, true, swallowed, unit, rows)
		}
		small := openWith(t, s.DSN(), func(c *livepool.Config) { c.MySQL.MaxAllowedPacket = 1000 })
		swallowed, unit, rows := runSwallowing(t, s, small, text("INSERT INTO t (v) VALUES (3) -- "+strings.Repeat("x", 2000)))
		if !errors.Is(swallowed, mysql.ErrPktTooLarge) {
			t.Errorf("got %v, want the driver's refusal", swallowed)
		}
		checkAtomic(t, false, swallowed, unit, rows)
	}, "--local-infile=1")
}
