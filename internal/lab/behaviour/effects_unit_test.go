package behaviour_test

// Transactions of units that end inside of a statement, on real servers.

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// procedures are what a unit may call.
var procedures = []string{
	"CREATE PROCEDURE test.plain(v INT) INSERT INTO t (v) VALUES (v)",
	"CREATE PROCEDURE test.tells() SELECT 1 UNION SELECT 2",
	"CREATE PROCEDURE test.commits() COMMIT",
	"CREATE PROCEDURE test.restarts() BEGIN COMMIT; START TRANSACTION; SELECT 1; END",
	"CREATE PROCEDURE test.defines() BEGIN CREATE TABLE IF NOT EXISTS made (v INT); SELECT 1; END",
	"CREATE PROCEDURE test.rolls_back() ROLLBACK",
	"CREATE PROCEDURE test.commits_and_fails() BEGIN COMMIT; SIGNAL SQLSTATE '45000'; END",
	"CREATE PROCEDURE test.fails() SIGNAL SQLSTATE '45000'",
	`CREATE PROCEDURE test.handles() BEGIN
		DECLARE CONTINUE HANDLER FOR SQLEXCEPTION BEGIN END;
		UPDATE account SET balance = balance + 1 WHERE id = 9;
	END`,
	`CREATE FUNCTION test.takes_nine() RETURNS INT BEGIN
		UPDATE account SET balance = balance + 1 WHERE id = 9;
		RETURN 1;
	END`,
}

func ledgerWithProcedures(t *testing.T, s *server.Server) *livepool.Pool {
	t.Helper()
	for _, q := range append([]string{
		"CREATE TABLE test.t (id INT AUTO_INCREMENT PRIMARY KEY, v INT)",
		"CREATE TABLE test.account (id INT PRIMARY KEY, balance INT NOT NULL)",
		"INSERT INTO test.account VALUES (1,0),(9,0)",
		"SET GLOBAL log_bin_trust_function_creators = 1",
	}, procedures...) {
		if err := s.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	p := open(t, s.DSN(), "")
	if err := p.CreateCommitTable(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// rowsLeft are the rows that a unit has left, as another connection sees them.
func rowsLeft(t *testing.T, s *server.Server) (rows []int) {
	t.Helper()
	var list sql.NullString
	if err := s.QueryRow("SELECT GROUP_CONCAT(v ORDER BY v) FROM test.t WHERE v < 1000", &list); err != nil {
		t.Fatal(err)
	}
	for v := range strings.SplitSeq(list.String, ",") {
		if n, err := strconv.Atoi(v); err == nil {
			rows = append(rows, n)
		}
	}
	return rows
}

// errNoDeadlock: the other transaction ended before the two could meet.
var errNoDeadlock = errors.New("the other transaction does not wait")

// deadlock runs a unit that inserts 1, meets a deadlock inside of query the first
// time, swallows what it is told, and inserts 2. It returns when the other
// transaction is over too.
func deadlock(t *testing.T, p *livepool.Pool, s *server.Server, query string, opts ...livepool.SessionOption) (told, err error) {
	t.Helper()
	db := openPlain(t, s.DSN())
	for range 3 {
		if err := s.Exec("DELETE FROM test.t"); err != nil {
			t.Fatal(err)
		}
		other := &otherSide{}
		err = p.WithSession(t.Context(), other.meetsUnit(s, db, query, &told), opts...)
		if other.ended != nil {
			<-other.ended
		}
		if err == nil && (other.ended == nil || labtest.IsServerError(other.err, 1213)) { // lost before, or spared
			err = errNoDeadlock
		}
		if !errors.Is(err, errNoDeadlock) {
			return told, err
		}
		t.Logf("%s: again: %v", query, err)
	}
	t.Fatal(err)
	return nil, nil
}

// otherSide is the other transaction of a deadlock.
type otherSide struct {
	tx     *sql.Tx
	thread int
	ended  chan struct{} // nil until it begins
	err    error         // with which its UPDATE ended, if it has
}

// begins has it change more than the unit, which the server then rolls back, and
// wait for the unit.
func (o *otherSide) begins(ctx context.Context, s *server.Server, db *sql.DB) (err error) {
	if o.tx, err = db.BeginTx(context.WithoutCancel(ctx), nil); err != nil {
		return err
	}
	o.ended = make(chan struct{})
	prepared := make(chan error, 1)
	go func() {
		defer close(o.ended)
		defer o.tx.Rollback()
		err := o.prepare()
		if prepared <- err; err == nil {
			_, o.err = o.tx.Exec("UPDATE account SET balance = 0 WHERE id = 1")
		}
	}()
	if err := <-prepared; err != nil {
		return err
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		select {
		case <-o.ended:
			return fmt.Errorf("%w: its UPDATE has ended: %v", errNoDeadlock, o.err)
		default:
		}
		if n, err := transactions(s, fmt.Sprintf("trx_state = 'LOCK WAIT' AND trx_mysql_thread_id = %d", o.thread)); err == nil && n > 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: not within 20s", errNoDeadlock)
}

func (o *otherSide) prepare() error {
	if err := o.tx.QueryRow("SELECT CONNECTION_ID()").Scan(&o.thread); err != nil {
		return err
	}
	for i := range 100 {
		if _, err := o.tx.Exec("INSERT INTO t (v) VALUES (?)", 1000+i); err != nil {
			return err
		}
	}
	_, err := o.tx.Exec("UPDATE account SET balance = 0 WHERE id = 9")
	return err
}

func (o *otherSide) meetsUnit(s *server.Server, db *sql.DB, query string, told *error) labtest.UnitFunc {
	return func(ctx context.Context, u *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, u); err != nil {
			return err
		}
		if u.Attempt() > 1 {
			return labtest.Insert(2)(ctx, u)
		}
		if _, err := u.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = 1"); err != nil {
			return err
		}
		if err := o.begins(ctx, s, db); err != nil {
			return err
		}
		_, *told = u.ExecContext(ctx, query)
		labtest.Insert(2)(ctx, u)
		return nil
	}
}

// MariaDB answers OK to DO inside of which a deadlock has ended the transaction.
// Nothing of it is applied, so that the unit is run again.
func TestDeadlockInsideOfDo(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := ledgerWithProcedures(t, s)
		for i, query := range []string{"DO (SELECT balance FROM account WHERE id = 9 FOR UPDATE)", "DO takes_nine()", "do 1, takes_nine(), 2"} {
			for _, opts := range [][]livepool.SessionOption{nil, {livepool.Once("key" + strconv.Itoa(i))}, {livepool.VerifyCommit()}} {
				told, err := deadlock(t, p, s, query, opts...)
				if rows := rowsLeft(t, s); err != nil || !slices.Equal(rows, []int{1, 2}) {
					t.Errorf("%s: %v are there, want 1 and 2: %v", query, rows, err)
				}
				t.Logf("%s: the statement says: %v", query, told)
				if told == nil {
					t.Errorf("%s: no deadlock: the test shows nothing", query)
				}
			}
		}
	})
}

// The same of whatever else may meet a deadlock inside: it is told, or seen.
func TestDeadlockInsideOfAnyStatement(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := ledgerWithProcedures(t, s)
		const row = "SELECT balance FROM account WHERE id = 9 FOR UPDATE"
		for _, query := range []string{
			row, "SELECT takes_nine()", "(" + row + ")", "WITH x AS (SELECT 1) " + row, "SET @x = (" + row + ")", "SET @x = takes_nine()", "SET @x = 1, @y = takes_nine()",
			"SET STATEMENT max_statement_time = 9 FOR DO takes_nine()", "SET STATEMENT max_statement_time = 9 FOR " + row,
			"INSERT IGNORE INTO t (v) " + row, "INSERT IGNORE INTO t (v) VALUES (takes_nine())", "REPLACE INTO t (v) " + row,
			"UPDATE IGNORE account SET balance = 1 WHERE id = 9", "DELETE IGNORE FROM account WHERE id = 9", "UPDATE t SET v = takes_nine() WHERE v = 1",
			"CREATE TEMPORARY TABLE made " + row, "EXPLAIN SELECT * FROM (SELECT takes_nine() AS x) AS y", "ANALYZE SELECT takes_nine()", "EXPLAIN ANALYZE SELECT takes_nine()",
			"SHOW TABLES WHERE takes_nine()", "KILL QUERY (" + row + ")", "SELECT 1 INTO @x FROM account WHERE takes_nine()",
			"PREPARE s FROM 'SELECT 1'", "TABLE account", "VALUES ROW(1)", "VALUES (takes_nine())", "SIGNAL SQLSTATE '45000'", "HANDLER account OPEN", "CHECKSUM TABLE account",
		} {
			told, err := deadlock(t, p, s, query)
			if rows := rowsLeft(t, s); err == nil && !slices.Equal(rows, []int{1, 2}) || err != nil && rows != nil {
				t.Errorf("%s: %v are there; the statement says %v, the unit %v", query, rows, told, err)
			}
			t.Logf("%s: %v", query, told)
		}
	})
}

// A procedure that handles a deadlock by itself has lost what was done before
// it, and may have committed something: the unit fails and says so.
func TestDeadlockThatAProcedureHandles(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := ledgerWithProcedures(t, s)
		told, err := deadlock(t, p, s, "CALL handles()")
		if rows := rowsLeft(t, s); err == nil || told == nil || rows != nil {
			t.Errorf("%v are there, want none; the statement says %v, the unit %v", rows, told, err)
		}
		if !strings.Contains(err.Error(), "may be committed") || strings.Contains(err.Error(), "nothing of it was applied") || !errors.Is(err, livepool.ErrPoisoned) {
			t.Errorf("the unit says: %v", err)
		}
		t.Logf("the statement says: %v\nthe unit says: %v", told, err)
	})
}

// waysToCall are how a unit may run a statement, and read its results.
var waysToCall = map[string]func(ctx context.Context, u *livepool.Session, query string) error{
	"Exec": func(ctx context.Context, u *livepool.Session, query string) error {
		_, err := u.ExecContext(ctx, query)
		return err
	},
	"Query": func(ctx context.Context, u *livepool.Session, query string) error {
		rows, err := u.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		for more := true; more; more = rows.NextResultSet() {
			for rows.Next() {
			}
		}
		return errors.Join(rows.Err(), rows.Close())
	},
	"Query, closed unread": func(ctx context.Context, u *livepool.Session, query string) error {
		rows, err := u.QueryContext(ctx, query)
		if err != nil {
			return err
		}
		return rows.Close()
	},
	"Prepare and Exec": func(ctx context.Context, u *livepool.Session, query string) error {
		st, err := u.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		defer st.Close()
		_, err = st.ExecContext(ctx)
		return err
	},
	"Prepare and Query": func(ctx context.Context, u *livepool.Session, query string) error {
		st, err := u.PrepareContext(ctx, query)
		if err != nil {
			return err
		}
		defer st.Close()
		rows, err := st.QueryContext(ctx)
		if err != nil {
			return err
		}
		return rows.Close()
	},
}

// Whatever ends the transaction inside of a statement, and however that is run:
// the rest of the unit is not applied, the unit is not run again, and it says
// that a part may be committed, also when its function swallows what it is told.
func TestTransactionThatEndsInsideOfAStatement(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := ledgerWithProcedures(t, s)
		ends := []string{
			"CALL commits()", "CALL restarts()", "CALL defines()", "CALL rolls_back()", "CALL commits_and_fails()",
			"EXECUTE ends",
		}
		if s.Kind() != server.MySQL {
			ends = append(ends, "EXECUTE IMMEDIATE 'COMMIT'", "BEGIN NOT ATOMIC COMMIT; END", "IF 1 THEN COMMIT; END IF")
		}
		for how, call := range waysToCall {
			for _, query := range ends {
				if strings.HasPrefix(how, "Prepare") && !strings.HasPrefix(query, "CALL") {
					continue
				}
				if err := s.Exec("DELETE FROM test.t"); err != nil {
					t.Fatal(err)
				}
				runs := 0
				var told error
				err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
					runs++
					if _, err := u.ExecContext(ctx, "PREPARE ends FROM 'COMMIT'"); err != nil {
						return err
					}
					if err := labtest.Insert(1)(ctx, u); err != nil {
						return err
					}
					told = call(ctx, u, query)
					if err := labtest.Insert(2)(ctx, u); !errors.Is(err, livepool.ErrPoisoned) {
						t.Errorf("%s of %s: the next statement: %v", how, query, err)
					}
					return nil
				})
				rows := rowsLeft(t, s)
				if slices.Contains(rows, 2) || runs != 1 || err == nil || told == nil || !strings.Contains(err.Error(), "may be committed") {
					t.Errorf("%s of %s: %v are there after %d runs; the statement says %v, the unit %v", how, query, rows, runs, told, err)
				}
			}
			for _, query := range []string{"CALL commits()", "CALL plain(1)"} {
				err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
					return call(ctx, u, query)
				}, livepool.Once("called"))
				if err == nil || !strings.Contains(err.Error(), "Once") {
					t.Errorf("%s of %s with a key: %v", how, query, err)
				}
			}
		}
	})
}

// A procedure that leaves the transaction alone costs the unit nothing of what it
// is promised: it is run again after a loss, in which all is undone.
func TestUnitWithAProcedureIsRunAgain(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := ledgerWithProcedures(t, s)
		for how, call := range waysToCall {
			if err := s.Exec("DELETE FROM test.t"); err != nil {
				t.Fatal(err)
			}
			runs := 0
			err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				runs++
				if err := labtest.Insert(1)(ctx, u); err != nil {
					return err
				}
				for _, query := range []string{"CALL plain(2)", "CALL tells()", "DO SLEEP(0)"} {
					if err := call(ctx, u, query); err != nil {
						t.Errorf("%s of %s: %v", how, query, err)
					}
				}
				// Of one that fails a part may have run, which is undone.
				if err := p.WithSession(ctx, func(ctx context.Context, u *livepool.Session) error {
					return call(ctx, u, "CALL fails()")
				}); err == nil || errors.Is(err, livepool.ErrPoisoned) {
					t.Errorf("%s of CALL fails(): %v", how, err)
				}
				inner := p.WithSession(ctx, func(ctx context.Context, u *livepool.Session) error {
					if err := call(ctx, u, "CALL plain(7)"); err != nil {
						return err
					}
					if err := call(ctx, u, "CALL fails()"); !labtest.IsServerError(err, 1644) {
						t.Errorf("%s of a procedure that fails: %v", how, err)
					}
					return errors.New("undone")
				})
				if inner == nil || inner.Error() != "undone" {
					t.Errorf("%s in a unit inside: %v", how, inner)
				}
				if runs == 1 {
					if err := s.KillConnections(); err != nil {
						return err
					}
				}
				return labtest.Insert(3)(ctx, u)
			})
			if rows := rowsLeft(t, s); err != nil || runs != 2 || !slices.Equal(rows, []int{1, 2, 3}) {
				t.Errorf("%s: %v are there after %d runs, want 1, 2, 3 after 2: %v", how, rows, runs, err)
			}
		}
	})
}

// A statement that commits without saying so in its first word.
func TestUnitSeesEveryImplicitCommit(t *testing.T) {
	t.Parallel()
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := ledgerWithProcedures(t, s)
		commits := []string{"SET DEFAULT ROLE NONE TO " + server.User, "LOAD INDEX INTO CACHE t", "CACHE INDEX t IN default", "ANALYZE TABLE account"}
		if s.Kind() != server.MySQL {
			commits = []string{"SET DEFAULT ROLE NONE", "CREATE TEMPORARY SEQUENCE seq", "ANALYZE TABLE account", "BACKUP LOCK account"}
		}
		for _, query := range commits {
			for _, opts := range [][]livepool.SessionOption{nil, {livepool.Once("a key for " + query)}} {
				if err := s.Exec("DELETE FROM test.t"); err != nil {
					t.Fatal(err)
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
					if err := labtest.Insert(1)(ctx, u); err != nil {
						return err
					}
					if _, err := u.ExecContext(ctx, query); err != nil {
						return err
					}
					if err := s.KillConnections(); err != nil {
						return err
					}
					return labtest.Insert(2)(ctx, u)
				}, opts...)
				want := []int{1} // it was committed
				if opts != nil {
					want = nil // it was refused
				}
				if rows := rowsLeft(t, s); err == nil || !slices.Equal(rows, want) {
					t.Errorf("%s, %d options: %v are there, want %v: %v", query, len(opts), rows, want, err)
				}
			}
		}
	})
}
