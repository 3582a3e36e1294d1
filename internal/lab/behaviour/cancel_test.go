package behaviour_test

// Contexts that end while statements run, whatever is between livepool and the server.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// eachTransport runs f on each kind of server, over a plain connection, TLS and compression.
func eachTransport(t *testing.T, f func(t *testing.T, s *server.Server, dsn string)) {
	t.Helper()
	for _, kind := range server.Kinds() {
		s := servertest.RunOptions(t, kind, server.Options{TLS: true})
		config := t.Name() + string(kind)
		if err := mysql.RegisterTLSConfig(config, s.TLSConfig()); err != nil {
			t.Fatal(err)
		}
		for _, params := range []string{"", "tls=" + config, "compress=true", "readTimeout=30s&writeTimeout=30s"} {
			t.Run(string(kind)+"/"+params, func(t *testing.T) { f(t, s, withParams(s.DSN(), params)) })
		}
	}
}

// storm is many statements whose contexts end at random moments.
type storm struct {
	p               *livepool.Pool
	next            atomic.Int64
	answered, ended atomic.Int64

	mu       sync.Mutex
	inserted map[int64]bool // by nonce: the caller was told that it is
	refused  map[int64]bool // their contexts had ended before the call
}

// patience is a context that ends at a random moment, about the time of an answer: by a
// deadline or by a cancel.
func (s *storm) patience(ctx context.Context, longest time.Duration) (context.Context, func()) {
	switch d := rand.N(longest); rand.N(4) {
	case 0:
		return context.WithTimeout(ctx, d)
	case 1:
		ctx, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(d, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	default:
		return context.WithCancel(ctx) // ends afterwards
	}
}

var errWrongAnswer = errors.New("the answer is another statement's")

// statements of the storm. Each is answered with its own nonce, or not at all.
var stormy = map[string]func(ctx context.Context, s *storm, nonce int64) error{
	"query": func(ctx context.Context, s *storm, nonce int64) error {
		return wantNonce(s.p.QueryRowContext(ctx, fmt.Sprintf("SELECT %d", nonce)), nonce)
	},
	"prepared query": func(ctx context.Context, s *storm, nonce int64) error {
		return wantNonce(s.p.QueryRowContext(ctx, "SELECT CAST(? AS SIGNED)", nonce), nonce)
	},
	"rows": func(ctx context.Context, s *storm, nonce int64) error {
		rows, err := s.p.QueryContext(ctx, fmt.Sprintf("SELECT %d, REPEAT('x', 400) FROM hundred", nonce))
		if err != nil {
			return err
		}
		defer rows.Close()
		n := 0
		for ; rows.Next(); n++ {
			var got int64
			var text string
			if err := rows.Scan(&got, &text); err != nil {
				return err
			}
			if got != nonce {
				return errWrongAnswer
			}
			if n == 50 && nonce%3 == 0 {
				return rows.Close()
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if n != 100 {
			return fmt.Errorf("%w: %d rows", errWrongAnswer, n)
		}
		return nil
	},
	"insert": func(ctx context.Context, s *storm, nonce int64) error {
		_, err := s.p.ExecContext(ctx, fmt.Sprintf("INSERT INTO storm (nonce) VALUES (%d)", nonce))
		s.note(ctx, nonce, err)
		return err
	},
	"prepared insert": func(ctx context.Context, s *storm, nonce int64) error {
		_, err := s.p.ExecContext(ctx, "INSERT INTO storm (nonce) VALUES (?)", nonce)
		s.note(ctx, nonce, err)
		return err
	},
	"a context that has ended": func(ctx context.Context, s *storm, nonce int64) error {
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		_, err := s.p.ExecContext(ctx, fmt.Sprintf("INSERT INTO storm (nonce) VALUES (%d)", nonce))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.refused[nonce] = true
		return err
	},
	"transaction": func(ctx context.Context, s *storm, nonce int64) error {
		tx, err := s.p.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("INSERT INTO storm (nonce) VALUES (%d)", nonce)); err != nil {
			return err
		}
		if err := wantNonce(tx.QueryRowContext(ctx, fmt.Sprintf("SELECT nonce FROM storm WHERE nonce = %d", nonce)), nonce); err != nil {
			return err
		}
		err = tx.Commit()
		s.note(ctx, nonce, err)
		return err
	},
	"ping": func(ctx context.Context, s *storm, _ int64) error { return s.p.PingContext(ctx) },
}

func wantNonce(row *sql.Row, want int64) error {
	var got int64
	if err := row.Scan(&got); err != nil {
		return err
	}
	if got != want {
		return errWrongAnswer
	}
	return nil
}

func (s *storm) note(_ context.Context, nonce int64, err error) {
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inserted[nonce] = true
	}
}

func (s *storm) one(t *testing.T) {
	nonce := s.next.Add(1)
	for name, run := range stormy { // which comes first is random
		ctx, cancel := s.patience(t.Context(), 2*time.Millisecond)
		err := run(ctx, s, nonce)
		switch {
		case err == nil:
			s.answered.Add(1)
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, sql.ErrTxDone) && ctx.Err() != nil:
			s.ended.Add(1)
		default:
			t.Errorf("%s: %v", name, err)
		}
		cancel()
		return
	}
}

// Nobody gets another's answer, what is told as done is done once, what had no time to be
// sent is not done, and nothing of it stays behind.
func TestStormOfCancels(t *testing.T) {
	t.Parallel()
	each := 1500
	if n, err := strconv.Atoi(os.Getenv("LIVEPOOL_STORM")); err == nil { // statements for each server and transport
		each = n
	}
	eachTransport(t, func(t *testing.T, server *server.Server, dsn string) {
		const workers = 8
		p := open(t, dsn, "pool_size=8&pool_max_overflow=0&pool_timeout=0")
		for _, ddl := range []string{
			"DROP TABLE IF EXISTS storm, hundred", "CREATE TABLE storm (id INT AUTO_INCREMENT PRIMARY KEY, nonce BIGINT, KEY (nonce))", "CREATE TABLE hundred (n INT)",
			"INSERT INTO hundred SELECT a.n + 10 * b.n FROM (SELECT 0 n UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6 UNION SELECT 7 UNION SELECT 8 UNION SELECT 9) a, " +
				"(SELECT 0 n UNION SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6 UNION SELECT 7 UNION SELECT 8 UNION SELECT 9) b",
		} {
			if _, err := p.ExecContext(t.Context(), ddl); err != nil {
				t.Fatal(err)
			}
		}
		s := &storm{p: p, inserted: map[int64]bool{}, refused: map[int64]bool{}}
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range each / workers {
					s.one(t)
				}
			})
		}
		wg.Wait()
		rows := map[int64]int{}
		result, err := p.QueryContext(t.Context(), "SELECT nonce FROM storm")
		if err != nil {
			t.Fatal(err)
		}
		defer result.Close()
		for result.Next() {
			var nonce int64
			if err := result.Scan(&nonce); err != nil {
				t.Fatal(err)
			}
			rows[nonce]++
		}
		for nonce, n := range rows {
			if n > 1 || s.refused[nonce] {
				t.Errorf("%d is there %d times, its context had ended before: %v", nonce, n, s.refused[nonce])
			}
		}
		for nonce := range s.inserted {
			if rows[nonce] != 1 {
				t.Errorf("%d was told as inserted, and is there %d times", nonce, rows[nonce])
			}
		}
		st := p.Stats()
		t.Logf("%d answered, %d ended; %d connections opened, %d killed", s.answered.Load(), s.ended.Load(), st.Opened, st.Killed+st.KillUnneeded)
		if s.answered.Load() == 0 || s.ended.Load() == 0 || st.Deaths != 0 {
			t.Errorf("%d answered, %d ended, %d deaths", s.answered.Load(), s.ended.Load(), st.Deaths)
		}
		result.Close()
		labtest.Eventually(t, "nothing runs any more", func() bool { return len(threadsRunning(t, server, "storm")) == 0 && p.DB.Stats().InUse == 0 })
	})
}

// A result that is being read ends with its context, with the context's error, also where
// the caller is between two rows; and a second statement beside it is refused, as it would
// read the rest of the result for its own.
func TestContextEndsWhileAResultIsRead(t *testing.T) {
	t.Parallel()
	eachTransport(t, func(t *testing.T, _ *server.Server, dsn string) {
		p := open(t, dsn, "pool_size=1")
		for _, prepared := range []bool{false, true} {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			conn, err := p.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			query, args := "SELECT REPEAT('x', 100000), SLEEP(0.1) FROM (SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 UNION SELECT 5 UNION SELECT 6) t", []any(nil)
			if prepared {
				query, args = query+" WHERE 1 = ?", []any{1}
			}
			rows, err := conn.QueryContext(ctx, query, args...)
			if err != nil {
				t.Fatal(err)
			}
			if !rows.Next() {
				t.Fatal(rows.Err())
			}
			other, cancelOther := context.WithCancel(t.Context())
			for _, ctx := range []context.Context{other, context.Background()} {
				if _, err := conn.ExecContext(ctx, "INSERT INTO no_such_table VALUES (1)"); err == nil || !strings.Contains(err.Error(), "still open") {
					t.Errorf("a statement beside an open result: %v", err)
				}
			}
			cancelOther()
			if !rows.Next() {
				t.Errorf("the result ends with another statement's context: %v", rows.Err())
			}
			cancel()
			for rows.Next() {
			}
			if err := rows.Err(); err != context.Canceled {
				t.Errorf("prepared %v: %v, want the context's own error", prepared, err)
			}
			rows.Close()
			conn.Close()
			if err := p.PingContext(t.Context()); err != nil {
				t.Errorf("prepared %v: the next caller: %v", prepared, err)
			}
		}
		if st := p.Stats(); st.Deaths != 0 {
			t.Errorf("%d deaths", st.Deaths)
		}
	})
}

// A context that ends after the whole answer has come, and before it was read: the
// connection is not handed out again, and nobody else hears of it.
func TestContextThatEndsWithTheAnswer(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "pool_size=1")
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		rows, err := p.QueryContext(ctx, "SELECT 1 UNION SELECT 2")
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		for rows.Next() {
		}
		rows.Close()
		if err := p.PingContext(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if st := p.Stats(); st.Deaths != 0 || st.ClosedByPeek != 0 {
		t.Errorf("%d deaths, %d connections were found closed at a checkout", st.Deaths, st.ClosedByPeek)
	}
}

// A reader of LOAD DATA that panics, which net/http's handlers survive, costs its connection
// and nothing else; one that blocks does not keep the server from ending the statement.
func TestReaderOfLoadDataThatDoesNotReturn(t *testing.T) {
	t.Parallel()
	s := servertest.RunOptions(t, server.MariaDB, server.Options{Args: []string{"--local-infile=1"}})
	createTables(t, s)
	p := open(t, s.DSN(), "pool_size=1&pool_pre_ping=off")
	const load = "LOAD DATA LOCAL INFILE 'Reader::%s' INTO TABLE t (v)"
	mysql.RegisterReaderHandler("panics", func() io.Reader { panic("reader") })
	for range 3 {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the reader was not asked")
				}
			}()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, _ = p.ExecContext(ctx, fmt.Sprintf(load, "panics"))
		}()
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := p.ExecContext(ctx, "DO 1"); err != nil {
			t.Errorf("the next caller: %v", err)
		}
		cancel()
	}

	blocked := make(chan struct{})
	mysql.RegisterReaderHandler("blocks", func() io.Reader { return &blockingReader{more: []byte("1\n"), blocked: blocked} })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := p.ExecContext(ctx, fmt.Sprintf(load, "blocks")); done <- err }()
	labtest.Eventually(t, "it runs", func() bool { return len(threadsRunning(t, s, "blocks")) == 1 })
	cancel()
	waitWithin(t, 5*time.Second, "the server has ended it, although its reader still blocks", func() bool { return len(threadsRunning(t, s, "blocks")) == 0 })
	close(blocked)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the context's error", err)
	}
	if st := p.Stats(); st.Deaths != 0 {
		t.Errorf("%d deaths", st.Deaths)
	}
}

// blockingReader gives what it has, and then nothing.
type blockingReader struct {
	more    []byte
	blocked chan struct{}
}

func (r *blockingReader) Read(b []byte) (int, error) {
	if len(r.more) == 0 {
		<-r.blocked
		return 0, io.EOF
	}
	n := copy(b, r.more)
	r.more = r.more[n:]
	return n, nil
}

// ownErrorContext ends with an error of its own.
type ownErrorContext struct{ context.Context }

func (c ownErrorContext) Err() error {
	if c.Context.Err() != nil {
		return errShuttingDown
	}
	return nil
}

var errShuttingDown = errors.New("shutting down")

// driverLog is the user's logger for the driver.
type driverLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *driverLog) Print(v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprint(v...))
}

// The end of a context is no death, whatever its error is, and nothing for the driver to log.
func TestContextWithAnErrorOfItsOwn(t *testing.T) {
	t.Parallel()
	s := servertest.Run(t, server.MariaDB)
	var log driverLog
	p := openWith(t, s.DSN(), func(c *livepool.Config) { c.Logger, c.MySQL.Logger = labtest.DiscardLogger, &log })
	ended, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := p.ExecContext(ownErrorContext{ended}, "DO SLEEP(20)"); !errors.Is(err, errShuttingDown) {
		t.Errorf("%v, want the context's own error", err)
	}
	if st := p.Stats(); st.Deaths != 0 || len(log.lines) != 0 {
		t.Errorf("%d deaths, the driver says %q", st.Deaths, log.lines)
	}
}

// A result that a function of sql.Conn.Raw has left open costs its connection, and no other
// caller.
func TestResultThatRawHasLeftOpen(t *testing.T) {
	t.Parallel()
	p := open(t, servertest.Run(t, server.MariaDB).DSN(), "pool_size=1")
	for range 3 {
		c, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Raw(func(dc any) error {
			rows, err := dc.(driver.QueryerContext).QueryContext(t.Context(), "SELECT 1", nil)
			if err != nil {
				return err
			}
			return rows.Next(make([]driver.Value, 1))
		}); err != nil {
			t.Error(err)
		}
		c.Close()
		if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
			t.Errorf("the next caller: %v", err)
		}
	}
}

// Who uses a sql.Conn further whose transaction the end of a context has cut is not sent to
// look for a firewall.
func TestConnectionThatAContextHasClosedIsNotBlamedOnTheNetwork(t *testing.T) {
	s := servertest.Run(t, server.MariaDB)
	p := open(t, s.DSN(), "")
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	tx, err := c.BeginTx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.ExecContext(ctx, "DO SLEEP(60)"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // database/sql rolls back; and what is idle for longer is looked at
	_, err = c.ExecContext(t.Context(), "DO 1")
	if !errors.Is(err, driver.ErrBadConn) || strings.Contains(err.Error(), "firewall") || !strings.Contains(err.Error(), "context") {
		t.Errorf("%v, want driver.ErrBadConn, because of the context", err)
	}
}
