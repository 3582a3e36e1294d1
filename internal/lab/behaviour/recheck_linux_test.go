package behaviour_test

// A slow server is no dead server: processes that are stopped by a signal.

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
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A server that stands still for a while, stopped by SIGSTOP: nobody's connection
// is closed but those that there is no room for.
func TestAStoppedServerLosesNoConnections(t *testing.T) {
	const idle, callers = 500, 10
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		p := open(t, s.DSN(), fmt.Sprintf("pool_size=%d", idle))
		warmReal(t, p.DB, idle)
		before := connectionIDs(t, s)
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
		closed := missing(before, connectionIDs(t, s))
		st := p.Stats()
		t.Logf("%d of %d closed, %d handshakes, %d deaths, %d killed", closed, len(before), st.Opened-idle, st.Deaths, st.Killed+st.KillUnneeded)
		if closed > int(st.Opened-idle) || st.Opened-idle > callers || st.Deaths > 0 { // only what there is no room for
			t.Errorf("%d of %d closed, %d handshakes, %d deaths", closed, len(before), st.Opened-idle, st.Deaths)
		}
	}, "--max-connections=700")
}

// connectionIDs are the ids of the user's connections on the server.
func connectionIDs(t *testing.T, s *server.Server) (ids []uint64) {
	t.Helper()
	list, err := s.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.User == server.User {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// missing counts the ids that were there before and are not any more.
func missing(before, after []uint64) (n int) {
	for _, id := range before {
		if !slices.Contains(after, id) {
			n++
		}
	}
	return n
}

// Each answer takes longer than PingTimeout, because the network is slow: the greeting
// shows that already, and no connection is given up for it.
func TestASlowServerIsNoDeadServerOnRealServers(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		const workers = 20
		s := servertest.Run(t, kind)
		via := proxyTo(t, s)
		via.Delay(1200 * time.Millisecond)
		plain := openPlain(t, s.DSNVia(via.Addr()))
		plain.SetMaxIdleConns(workers)
		p := open(t, s.DSNVia(via.Addr()), fmt.Sprintf("pool_size=%d&pool_connect_timeout=20s", workers))
		var begin sync.WaitGroup // the first use of each, which asks more of a new connection
		begin.Go(func() { labtest.RunLoad(plain, workers, 2*time.Second, 2*time.Second) })
		begin.Go(func() { labtest.RunLoad(p.DB, workers, 2*time.Second, 2*time.Second) })
		begin.Wait()
		var want, got int64
		var both sync.WaitGroup
		both.Go(func() { want = labtest.RunLoad(plain, workers, 12*time.Second, 600*time.Millisecond) })
		both.Go(func() { got = labtest.RunLoad(p.DB, workers, 12*time.Second, 600*time.Millisecond) })
		both.Wait()
		st := p.Stats()
		pings := st.Pinged - st.KeptAlive // by callers, each in the time of a statement
		t.Logf("%d statements, plain %d; %d connections, %d pings by callers, %d deaths", got, want, st.Opened, pings, st.Deaths)
		if st.Deaths != 0 || st.Opened > workers+2 || float64(got+pings) < 0.9*float64(want) || pings > want/4 {
			t.Errorf("%d statements, plain %d; %d connections, %d deaths", got, want, st.Opened, st.Deaths)
		}
	})
}

// A caller's deadline has room for a statement and not for a ping before it.
// Where the socket looks well it is not made to fail for ever.
func TestADeadlineThatBearsOneRoundTrip(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		// Two round trips do not fit, and one does with time to spare.
		const rtt, patience, calls = 400 * time.Millisecond, 600 * time.Millisecond, 8
		s := servertest.Run(t, kind)
		via := proxyTo(t, s)
		via.Delay(rtt)
		plain := openPlain(t, s.DSNVia(via.Addr()))
		plain.SetMaxIdleConns(calls)
		p := open(t, s.DSNVia(via.Addr()), "pool_connect_timeout=20s")
		warmReal(t, plain, calls)
		warmReal(t, p.DB, calls)
		callOn := func(db *sql.DB) error {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := db.ExecContext(ctx, "DO 1")
			return err
		}
		call := func() error { return callOn(p.DB) }
		want, succeeded := 0, 0 // what a slow machine makes fail fails on plain, too
		for range calls {
			time.Sleep(700 * time.Millisecond)
			if err := callOn(plain); err == nil {
				want++
			} else {
				t.Log("plain:", err)
			}
			if err := call(); err == nil {
				succeeded++
			} else {
				t.Log(err)
			}
		}
		if want < calls/2 {
			t.Errorf("%d of %d calls succeeded on plain: the test shows nothing", want, calls)
		}
		if succeeded < want-1 {
			t.Errorf("%d of %d calls succeeded, on plain %d", succeeded, calls, want)
		}
		// In a black hole such callers must not be sent into it for ever.
		via.Stall()
		failed := 0
		for end := time.Now().Add(20 * time.Second); call() != nil && time.Now().Before(end); time.Sleep(700 * time.Millisecond) {
			failed++
		}
		t.Logf("%d of %d calls succeeded; %d failed in the black hole; %+v", succeeded, calls, failed, p.Stats())
		if failed > 10 {
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
	Errors []string // since the last report
	Fewest int      // statements that one of the workers has run since the last "hold"
	Taken  int      // how often many connections have been taken at once since then
	Stats  livepool.Stats
}

// manyIdle is how many connections that client opens when it is told to warm up.
const manyIdle = 500

// warmUp opens n connections, and returns them to the pool.
func warmUp(db *sql.DB, n int) error {
	conns := make([]*sql.Conn, 0, n)
	defer func() { fakedb.GiveBack(conns) }()
	for range n {
		c, err := db.Conn(context.Background())
		if err != nil {
			return err
		}
		conns = append(conns, c)
		if _, err := c.ExecContext(context.Background(), "DO 1"); err != nil {
			return err
		}
	}
	return nil
}

// client runs statements on all connections of a pool until its input ends, and
// reports for each line of it. At "hold" it first lets what is under way end, and
// begins nothing more until "go".
func client(dsn string) error {
	p, err := livepool.Open(dsn)
	if err != nil {
		return err
	}
	defer p.Close()
	const workers = 8
	var gate sync.RWMutex // read by those who use the pool
	var mu sync.Mutex
	report, done, ended := clientReport{}, make([]int, workers), false
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for pause := time.Duration(i+1) * 10 * time.Millisecond; ; time.Sleep(pause) {
				gate.RLock()
				_, err := p.Exec("DO 1")
				mu.Lock()
				done[i]++
				if err != nil {
					report.Errors = append(report.Errors, err.Error())
				}
				stop := ended
				mu.Unlock()
				gate.RUnlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Go(func() { // and others that are in a ping most of the time, if the answers are slow
		for i := 0; ; i++ {
			gate.RLock()
			conns := make([]*sql.Conn, 0, 4*workers)
			for range cap(conns) {
				if c, err := p.Conn(context.Background()); err == nil {
					conns = append(conns, c)
				}
			}
			mu.Lock()
			if len(conns) == cap(conns) {
				report.Taken++
			}
			stop := ended
			mu.Unlock()
			fakedb.GiveBack(conns)
			gate.RUnlock()
			if stop {
				return
			}
			time.Sleep(600 * time.Millisecond)
		}
	})
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		switch in.Text() {
		case "hold":
			gate.Lock()
			clear(done)
			report.Taken = 0
		case "go":
			gate.Unlock()
		case "warm":
			if err := warmUp(p.DB, manyIdle); err != nil {
				return err
			}
		}
		mu.Lock()
		report.Fewest = slices.Min(done)
		report.Stats = p.Stats()
		out.Encode(report)
		report.Errors = nil
		mu.Unlock()
	}
	mu.Lock()
	ended = true
	mu.Unlock()
	wg.Wait()
	return nil
}

// startClient runs such a client. Lines that it is told are reported on in turn.
func startClient(t *testing.T, dsn string) (pause, resume func(), tell func(line string), report func() clientReport) {
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
	tell = func(line string) {
		if _, err := io.WriteString(in, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	return signal(syscall.SIGSTOP), signal(syscall.SIGCONT), tell, func() (r clientReport) {
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
		via := proxyTo(t, s)
		via.Delay(100 * time.Millisecond)
		pause, resume, tell, answer := startClient(t, withParams(s.DSNVia(via.Addr()), "pool_size=100&pool_connect_timeout=30s"))
		report := func() clientReport { tell(""); return answer() }
		labtest.Eventually(t, "the client has pinged its connections", func() bool {
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

// First the server stands still, then the client: of its many idle connections hardly one
// is closed, for all of them are alive.
func TestAStoppedServerAndThenAStoppedClientLoseNoConnections(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		pauseClient, resumeClient, tell, answer := startClient(t, withParams(s.DSN(), fmt.Sprintf("pool_size=%d&pool_connect_timeout=30s", manyIdle+50)))
		tell("warm")
		before := answer()
		opened := connectionIDs(t, s)
		if len(opened) < manyIdle {
			t.Fatalf("%d connections", len(opened))
		}
		time.Sleep(600 * time.Millisecond)
		for _, stop := range []struct {
			pause, resume func()
			length        time.Duration
		}{
			{func() { _ = s.Pause() }, func() { _ = s.Resume() }, 1400 * time.Millisecond},
			{pauseClient, resumeClient, 1500 * time.Millisecond},
		} {
			stop.pause()
			time.Sleep(stop.length)
			stop.resume()
		}
		time.Sleep(3 * time.Second) // in which the surplus is closed
		tell("")
		after := answer()
		closed, st := missing(opened, connectionIDs(t, s)), after.Stats
		t.Logf("%d of %d closed, %d opened, %d pings, %d deaths", closed, len(opened), st.Opened-before.Stats.Opened, st.Pinged-before.Stats.Pinged, st.Deaths)
		if closed > 5 || st.Deaths > 0 || len(after.Errors) > 0 {
			t.Errorf("%d of %d closed, %d deaths, errors %q", closed, len(opened), st.Deaths, after.Errors)
		}
	}, "--max-connections=700")
}

// A client is stopped, and its connections are cut without a word meanwhile.
// When it goes on it sends no statement into the black hole: each connection is
// pinged first, however fresh the client's clock looked. Nothing is under way
// when it is stopped: what was sent before, or was about to be, and an answer
// that is read late, are nobody's to notice.
func TestAStoppedClientTrustsNothing(t *testing.T) {
	eachKindAtOnce(t, func(t *testing.T, kind server.Kind) {
		s := servertest.Run(t, kind)
		via := proxyTo(t, s)
		pause, resume, tell, answer := startClient(t, withParams(s.DSNVia(via.Addr()),
			"pool_size=100&pool_keepalive=0&pool_stall_after=0&pool_ping_timeout=2s&pool_connect_timeout=30s"))
		defer via.RST() // ends what is in the black hole for ever
		report := func() clientReport { tell(""); return answer() }
		for round := range 3 {
			labtest.Eventually(t, "the client has opened its connections, and uses them", func() bool {
				r := report()
				return r.Taken > 0 && r.Fewest > 0
			})
			tell("hold")
			before := answer()
			pause()
			via.Stall()
			time.Sleep(1500 * time.Millisecond)
			tell("go")
			began := time.Now()
			resume()
			after := answer()
			labtest.Eventually(t, "each worker has run a statement: none was sent into the black hole", func() bool {
				r := report()
				after.Fewest, after.Stats, after.Errors = r.Fewest, r.Stats, append(after.Errors, r.Errors...)
				return after.Fewest > 0
			})
			t.Logf("round %d: it took %s, %d pings, %d connections opened", round, time.Since(began),
				after.Stats.Pinged-before.Stats.Pinged, after.Stats.Opened-before.Stats.Opened)
			if len(after.Errors) > 0 || after.Stats.Pinged == before.Stats.Pinged {
				t.Errorf("round %d: %d pings, errors %q", round, after.Stats.Pinged-before.Stats.Pinged, after.Errors)
			}
			tell("hold")
			answer()
			via.RST() // and the pings that are under way still
			tell("go")
			answer()
		}
	})
}
