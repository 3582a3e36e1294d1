package livepool_test

// The same on real servers, with processes that are stopped by a signal.

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/server"
	"github.com/livepool/livepool/internal/server/servertest"
)

// A server stands still for a while. Whoever pings in that time waits for one
// PingTimeout; nobody's connection is closed but for what there is no room for,
// The same on real servers, stopped by SIGSTOP.
func TestAStoppedServerLosesNoConnections(t *testing.T) {
	const idle, callers = 500, 10
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), fmt.Sprintf("pool_size=%d", idle))
		warmReal(t, p.DB, idle)
		ids := func() (all []uint64) {
			list, err := s.Processes()
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				if p.User == server.User {
					all = append(all, p.ID)
				}
			}
			return all
		}
		before := ids()
		time.Sleep(600 * time.Millisecond)
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() { connectionID(t, p.DB) })
		}
		time.Sleep(1400 * time.Millisecond)
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		time.Sleep(3 * time.Second) // in which the surplus is closed
		after := ids()
		closed := 0
		for _, id := range before {
			if !slices.Contains(after, id) {
				closed++
			}
		}
		st := p.Stats()
		t.Logf("%d of %d closed, %d handshakes, %d deaths, %d killed", closed, len(before), st.Opened-idle, st.Deaths, st.Killed+st.KillUnneeded)
		if closed > 5 || st.Opened-idle > callers || st.Deaths > 0 {
			t.Errorf("%d of %d closed, %d handshakes, %d deaths", closed, len(before), st.Opened-idle, st.Deaths)
		}
	}, "--max-connections=700")
}

// load has workers run one statement after the other, each after a pause, and
// Each answer takes longer than PingTimeout. That is learned, and nobody's
// The same on real servers behind a slow network, whose greetings tell in time.
func TestASlowServerIsNoDeadServerOnRealServers(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		const workers = 20
		s := servertest.Run(t, kind)
		via := front(t, s)
		via.Delay(1200 * time.Millisecond)
		plain := openPlain(t, s.DSNVia(via.Addr()))
		plain.SetMaxIdleConns(workers)
		p := open(t, s.DSNVia(via.Addr()), fmt.Sprintf("pool_size=%d&pool_connect_timeout=20s", workers))
		var begin sync.WaitGroup // the first use of each, which asks more of a new connection
		begin.Go(func() { load(plain, workers, 2*time.Second, 2*time.Second) })
		begin.Go(func() { load(p.DB, workers, 2*time.Second, 2*time.Second) })
		begin.Wait()
		var want, got int64
		var both sync.WaitGroup
		both.Go(func() { want = load(plain, workers, 12*time.Second, 600*time.Millisecond) })
		both.Go(func() { got = load(p.DB, workers, 12*time.Second, 600*time.Millisecond) })
		both.Wait()
		st := p.Stats()
		t.Logf("%d statements, plain %d; %d connections, %d pings by callers, %d deaths", got, want, st.Opened, st.Pinged-st.KeptAlive, st.Deaths)
		if st.Deaths != 0 || st.Opened > workers+2 || float64(got) < 0.9*float64(want) {
			t.Errorf("%d statements, plain %d; %d connections, %d deaths", got, want, st.Opened, st.Deaths)
		}
	})
}

// A caller's deadline has room for a statement and not for a ping before it.
// Where the socket looks well he is not made to fail for ever.
func TestADeadlineThatBearsOneRoundTrip(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		const rtt, patience, calls = 200 * time.Millisecond, 350 * time.Millisecond, 8
		s := servertest.Run(t, kind)
		via := front(t, s)
		via.Delay(rtt)
		p := open(t, s.DSNVia(via.Addr()), "pool_connect_timeout=20s")
		warmReal(t, p.DB, 3)
		call := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := p.ExecContext(ctx, "DO 1")
			return err
		}
		succeeded := 0
		for range calls {
			time.Sleep(700 * time.Millisecond)
			if err := call(); err == nil {
				succeeded++
			} else {
				t.Log(err)
			}
		}
		if succeeded < calls-1 {
			t.Errorf("%d of %d calls succeeded", succeeded, calls)
		}
		// In a black hole such callers must not be sent into it for ever.
		via.Stall()
		failed := 0
		for end := time.Now().Add(20 * time.Second); call() != nil && time.Now().Before(end); time.Sleep(700 * time.Millisecond) {
			failed++
		}
		t.Logf("%d of %d calls succeeded; %d failed in the black hole; %+v", succeeded, calls, failed, p.Stats())
		if failed > 6 {
			t.Errorf("%d calls failed in a black hole", failed)
		}
		via.Heal()
	})
}

// clientDSN is where the test binary, run once more, finds what a client in a
// process of its own is to connect to.
const clientDSN = "LIVEPOOL_TEST_CLIENT_DSN"

// clientReport is what that client tells when it is asked.
type clientReport struct {
	Longest time.Duration // that a statement took since the last report, or has taken so far
	Errors  []string
	Stats   livepool.Stats
}

// client runs statements on all connections of a pool until its input ends, and
// reports for each line of it.
func client(dsn string) error {
	p, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer p.Close()
	const workers = 8
	var mu sync.Mutex
	report, began, ended := clientReport{}, [workers]time.Time{}, false
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for pause := time.Duration(i+1) * 10 * time.Millisecond; ; time.Sleep(pause) {
				mu.Lock()
				began[i] = time.Now()
				stop := ended
				mu.Unlock()
				if stop {
					return
				}
				_, err := p.Exec("DO 1")
				mu.Lock()
				report.Longest = max(report.Longest, time.Since(began[i]))
				if err != nil {
					report.Errors = append(report.Errors, err.Error())
				}
				mu.Unlock()
			}
		})
	}
	wg.Go(func() { // and others that are in a ping most of the time, if the answers are slow
		for i := 0; ; i++ {
			conns := make([]*sql.Conn, 0, 4*workers)
			for range cap(conns) {
				if c, err := p.Conn(context.Background()); err == nil {
					conns = append(conns, c)
				}
			}
			giveBack(conns)
			mu.Lock()
			stop := ended
			mu.Unlock()
			if stop {
				return
			}
			time.Sleep(600 * time.Millisecond)
		}
	})
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		mu.Lock()
		for _, at := range began {
			report.Longest = max(report.Longest, time.Since(at))
		}
		report.Stats = p.Stats()
		out.Encode(report)
		report = clientReport{}
		mu.Unlock()
	}
	mu.Lock()
	ended = true
	mu.Unlock()
	wg.Wait()
	return nil
}

// startClient runs such a client.
func startClient(t *testing.T, dsn string) (pause, resume func(), report func() clientReport) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestClientOfItsOwn$")
	cmd.Env = append(os.Environ(), clientDSN+"="+dsn, "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGCONT)
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	signal := func(s syscall.Signal) func() {
		return func() {
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
		}
	}
	reports := json.NewDecoder(out)
	return signal(syscall.SIGSTOP), signal(syscall.SIGCONT), func() (r clientReport) {
		if _, err := io.WriteString(in, "\n"); err != nil {
			t.Fatal(err)
		}
		if err := reports.Decode(&r); err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// TestClientOfItsOwn is that client, where another test has run it.
func TestClientOfItsOwn(t *testing.T) {
	dsn := os.Getenv(clientDSN)
	if dsn == "" {
		return
	}
	if err := client(dsn); err != nil {
		t.Fatal(err)
	}
	os.Exit(0) // so that nothing but reports is written
}

// A client is stopped in the middle of its pings, and their answers lie in its
// sockets when it goes on: that is no silence.
func TestAStoppedClientLosesNoConnections(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		s := servertest.Run(t, kind)
		via := front(t, s)
		via.Delay(100 * time.Millisecond)
		pause, resume, report := startClient(t, withParams(s.DSNVia(via.Addr()), "pool_size=100&pool_connect_timeout=30s"))
		eventually(t, "the client has pinged its connections", func() bool {
			st := report().Stats
			return st.Opened >= 30 && st.Pinged > 40
		})
		before := report()
		for range 4 {
			time.Sleep(650 * time.Millisecond)
			pause()
			time.Sleep(1500 * time.Millisecond)
			resume()
		}
		time.Sleep(3 * time.Second)
		after := report()
		st := after.Stats
		t.Logf("%d connections, %d opened meanwhile, %d pings, %d deaths", st.OpenConnections, st.Opened-before.Stats.Opened, st.Pinged-before.Stats.Pinged, st.Deaths)
		if st.Deaths > 0 || st.Opened-before.Stats.Opened > 5 || len(after.Errors) > 0 {
			t.Errorf("opened %d, deaths %d, errors %q", st.Opened-before.Stats.Opened, st.Deaths, after.Errors)
		}
	})
}

// A client is stopped, and its connections are cut without a word meanwhile.
// When it goes on it sends no statement into the black hole: each connection is
// pinged first, however fresh the client's clock looked.
func TestAStoppedClientTrustsNothing(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		s := servertest.Run(t, kind)
		via := front(t, s)
		pause, resume, report := startClient(t, withParams(s.DSNVia(via.Addr()), "pool_size=100&pool_stall_after=0&pool_connect_timeout=30s"))
		eventually(t, "the client has opened its connections", func() bool { return report().Stats.Opened >= 30 })
		const rounds = 6
		unpinged := 0
		for round := range rounds {
			report()
			pause()
			time.Sleep(500 * time.Millisecond) // for what was under way
			via.Stall()
			time.Sleep(1500 * time.Millisecond)
			resume()
			time.Sleep(5 * time.Second)
			if r := report(); r.Longest > 2*time.Second+4*time.Second {
				unpinged++
				t.Logf("round %d: a statement has taken %s: it was sent into the black hole; errors %q", round, r.Longest, r.Errors)
			}
			via.Heal()
		}
		// A stop between the reading of the clock and the statement is nobody's to notice.
		if unpinged > rounds/2 {
			t.Errorf("in %d of %d rounds a statement was sent without a ping", unpinged, rounds)
		}
	})
}
