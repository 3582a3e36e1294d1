package peers

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
	"github.com/livepool/livepool/internal/lab/testenv"
)

// A line is what a peer may say, all kinds in one.
type line struct {
	Ready, Done, Held, Unsupported bool
	Name, Kind, Outcome, Error     string
	ID                             int64
	Start                          int64   `json:"start_us"`
	End                            int64   `json:"end_us"`
	P50                            float64 `json:"p50_us"`
	P99                            float64 `json:"p99_us"`
	Operations, Failed             int
}

func TestPeersDoAsTheyAreTold(t *testing.T) {
	all, err := All(t.Context(), os.Stderr)
	if errors.Is(err, server.ErrUnavailable) {
		testenv.Missing(t, "%v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range all {
		names = append(names, p.Name)
	}
	if want := []string{"SQLAlchemy", "SQLAlchemy, pre-ping", "HikariCP"}; !slices.Equal(names, want) {
		t.Fatalf("%q, want %q", names, want)
	}
	for _, kind := range []server.Kind{server.MariaDB, server.MySQL} {
		s := servertest.Run(t, kind)
		db := tables(t, s)
		for _, p := range all {
			t.Run(string(kind)+"/"+p.Name, func(t *testing.T) { testPeer(t, p, s, db) })
		}
	}
}

func TestPeersThatCannotBeHadAreNamed(t *testing.T) {
	t.Setenv("LIVEPOOL_CACHE", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	all, err := All(t.Context(), io.Discard)
	if len(all) != 0 || !errors.Is(err, server.ErrUnavailable) {
		t.Fatalf("%v, %v", all, err)
	}
	for _, want := range []string{"SQLAlchemy and SQLAlchemy, pre-ping are left out", "HikariCP is left out", "apt-get"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
}

func tables(t *testing.T, s *server.Server) *sql.DB {
	db, err := sql.Open("mysql", s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for _, q := range []string{"CREATE TABLE bench_point (id INT PRIMARY KEY, v VARCHAR(100))", "INSERT INTO bench_point VALUES (1, 'one')",
		"CREATE TABLE bench_job (id BIGINT NOT NULL, KEY (id))", "CREATE TABLE bench_lock (id INT PRIMARY KEY, v BIGINT)", "INSERT INTO bench_lock VALUES (1, 0)"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// A talk is with a peer that runs.
type talk struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Scanner
}

func start(t *testing.T, p Peer, s *server.Server) (*talk, *exec.Cmd) {
	cfg, err := mysql.ParseDSN(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	host, port, _ := strings.Cut(cfg.Addr, ":")
	cmd := p.Command("--host", host, "--port", port, "--user", cfg.User, "--database", cfg.DBName, "--size", "4")
	cmd.Env = append(cmd.Env, "BENCH_PASSWORD="+cfg.Passwd)
	cmd.Stderr = t.Output()
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // the test failed
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return &talk{t, in, bufio.NewScanner(out)}, cmd
}

func (k *talk) say(order string) {
	if _, err := io.WriteString(k.in, order+"\n"); err != nil {
		k.t.Fatal(err)
	}
}

// until returns the lines up to the first that ends it.
func (k *talk) until(end func(line) bool) (lines []line) {
	k.t.Helper()
	for k.out.Scan() {
		var l line
		if err := json.Unmarshal(k.out.Bytes(), &l); err != nil {
			k.t.Fatalf("%v: %s", err, k.out.Bytes())
		}
		if lines = append(lines, l); end(l) {
			return lines
		}
	}
	k.t.Fatalf("the peer ended: %v, after %+v", k.out.Err(), lines)
	return nil
}

func done(kind string) func(line) bool { return func(l line) bool { return l.Done && l.Kind == kind } }

func testPeer(t *testing.T, p Peer, s *server.Server, db *sql.DB) {
	k, cmd := start(t, p, s)
	ready := k.until(func(l line) bool { return l.Ready })[0]
	if !strings.HasPrefix(ready.Name, strings.TrimSuffix(p.Name, ", pre-ping")+" ") ||
		strings.HasSuffix(p.Name, ", pre-ping") != strings.HasSuffix(ready.Name, ", pre-ping") {
		t.Errorf("its name is %q", ready.Name)
	}
	t.Log(ready.Name)
	for _, kind := range []string{"query", "exec"} {
		k.say(`{"kind":"` + kind + `","callers":8,"seconds":0.5,"every_ms":0,"first_id":0,"deadline_seconds":30}`)
		lines := k.until(done(kind))
		if l := lines[0]; len(lines) != 1 || l.Operations == 0 || l.Failed != 0 || l.P50 <= 0 || l.P99 < l.P50 {
			t.Errorf("%s: %+v", kind, lines)
		}
	}
	testJobs(k, db)
	testHung(k, db)
	k.say(`{"kind":"lock","seconds":30,"pause_ms":1,"statement":"DO 1","timeout_seconds":2}`)
	if lines := k.until(done("lock")); len(lines) != 2 || !lines[0].Held || lines[1].Failed != 0 {
		t.Errorf("lock: %+v", lines)
	}
	if v := number(t, db, "SELECT v FROM bench_lock"); v != 0 {
		t.Errorf("the lock's transaction was not rolled back: %d", v)
	}
	k.say(`{"kind":"dance"}`)
	if l := k.until(done("dance")); !l[0].Unsupported {
		t.Errorf("an unknown order: %+v", l)
	}
	k.in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("at the end of its orders: %v", err)
	}
}

// testJobs orders jobs, and that all connections are replaced while they run.
func testJobs(k *talk, db *sql.DB) {
	t := k.t
	number(t, db, "DELETE FROM bench_job")
	before := number(t, db, "SELECT MAX(id) FROM information_schema.processlist")
	k.say(`{"kind":"job","callers":8,"seconds":1,"every_ms":5,"first_id":1000000,"deadline_seconds":30}`)
	first := k.until(func(l line) bool { return l.ID > 0 })
	k.say(`{"kind":"recycle"}`)
	lines := append(first, k.until(done("job"))...)
	if !slices.ContainsFunc(lines, done("recycle")) {
		lines = append(k.until(done("recycle")), lines...)
	}
	ok, end := 0, lines[len(lines)-1]
	seen := map[int64]bool{}
	for _, l := range lines {
		if l.ID == 0 {
			continue
		}
		if l.ID < 1000000 || seen[l.ID] || l.Outcome != "ok" || l.End < l.Start {
			t.Errorf("job: %+v", l)
		}
		seen[l.ID] = true
		ok++
	}
	if rows := number(t, db, "SELECT COUNT(DISTINCT id) FROM bench_job WHERE id >= 1000000"); end.Operations != ok || int(rows) != ok || end.Failed != 0 {
		t.Errorf("%d jobs told, %d rows, %+v", ok, rows, end)
	}
	if after := number(t, db, "SELECT MAX(id) FROM information_schema.processlist WHERE user = 'livepool'"); after <= before {
		t.Errorf("no connection is newer than the recycle: %d, %d before", after, before)
	}
}

// testHung orders jobs that a lock of the test holds up until after their deadline, and one that the server refuses.
func testHung(k *talk, db *sql.DB) {
	t := k.t
	c, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ExecContext(t.Context(), "LOCK TABLES bench_job READ"); err != nil {
		t.Fatal(err)
	}
	k.say(`{"kind":"job","callers":2,"seconds":0.1,"every_ms":0,"first_id":2000000,"deadline_seconds":0.5}`)
	lines := k.until(done("job"))
	if end := lines[len(lines)-1]; len(lines) != 3 || lines[0].Outcome != "hung" || lines[1].Outcome != "hung" || end.Operations != 2 || end.Failed != 2 {
		t.Errorf("hung: %+v", lines)
	}
	if _, err := c.ExecContext(t.Context(), "UNLOCK TABLES"); err != nil {
		t.Fatal(err)
	}
	number(t, db, "ALTER TABLE bench_job RENAME TO bench_job_away") // waits for the two
	k.say(`{"kind":"job","callers":1,"seconds":0.1,"every_ms":50,"first_id":3000000,"deadline_seconds":30}`)
	lines = k.until(done("job"))
	if l := lines[0]; l.Outcome != "failed" || !strings.Contains(l.Error, "bench_job") || strings.Contains(l.Error, "\n") {
		t.Errorf("a job that failed: %+v", l)
	}
	number(t, db, "ALTER TABLE bench_job_away RENAME TO bench_job")
}

// number runs a statement, and returns the number that it asks for if it asks for one.
func number(t *testing.T, db *sql.DB, q string) int64 {
	t.Helper()
	if !strings.HasPrefix(q, "SELECT") {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
		return 0
	}
	var text string
	if err := db.QueryRow(q).Scan(&text); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
