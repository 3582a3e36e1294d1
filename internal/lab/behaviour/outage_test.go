package behaviour_test

// Outages of real servers.

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/loopback"
	"github.com/livepool/livepool/internal/lab/proxy"
	"github.com/livepool/livepool/internal/lab/server"
)

// openCounting opens a pool that counts its attempts to connect, refused ones too.
func openCounting(t *testing.T, dsn string, change func(*livepool.Config)) (*livepool.Pool, *countingDialer) {
	t.Helper()
	dialer := &countingDialer{}
	p := openWith(t, dsn, func(c *livepool.Config) {
		c.Logger = labtest.DiscardLogger
		c.MySQL.DialFunc = dialer.dial
		if change != nil {
			change(c)
		}
	})
	return p, dialer
}

type countingDialer struct {
	mu    sync.Mutex
	dials []time.Time
	fail  func() error // in place of dialling, if it returns an error

	dialer net.Dialer
}

func (k *countingDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	k.mu.Lock()
	k.dials = append(k.dials, time.Now())
	fail := k.fail
	k.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return nil, err
		}
	}
	return k.dialer.DialContext(ctx, network, addr)
}

// between counts the attempts in a time.
func (k *countingDialer) between(from, to time.Time) (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, at := range k.dials {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// checkEachOnce reports if the table has not one row for each of n units.
func checkEachOnce(t *testing.T, s *server.Server, n int) {
	t.Helper()
	rows, distinct := count(t, s, "t"), 0
	if err := s.QueryRow("SELECT COUNT(DISTINCT v) FROM test.t", &distinct); err != nil {
		t.Fatal(err)
	}
	if rows != n || distinct != n {
		t.Errorf("%d rows of %d of %d units, want every one's once", rows, distinct, n)
	}
}

// A unit outlasts a server that is down for a while.
func TestUnitWaitsForItsServer(t *testing.T) {
	s, p := openLedger(t, server.MariaDB)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(time.Second, func() {
		if err := s.Start(); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := p.WithSession(t.Context(), labtest.Insert(1)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(t, s, "t"); n != 8 {
		t.Errorf("%d rows, want 8", n)
	}
}

// A server is killed under its units and started again after three seconds. No
// unit fails, each is applied once, and the attempts to connect are as many for
// two thousand units as for eight.
func TestOutageKilledServer(t *testing.T) {
	for _, tt := range []struct {
		kind  server.Kind
		units int
	}{{server.MariaDB, 8}, {server.MariaDB, 2000}, {server.MySQL, 500}} {
		t.Run(fmt.Sprintf("%s, %d units", tt.kind, tt.units), func(t *testing.T) {
			t.Parallel()
			s, _ := openLedger(t, tt.kind)
			p, k := openCounting(t, s.DSN(), nil)
			errs := make([]error, tt.units)
			dead := make(chan struct{})
			var wg sync.WaitGroup
			unit := func(i int) {
				wg.Go(func() {
					errs[i] = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						if err := labtest.Insert(i)(ctx, s); err != nil {
							return err
						}
						select { // let it be killed in the middle of some
						case <-dead:
						case <-time.After(200 * time.Millisecond):
						}
						_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", i%9+1)
						return err
					}, livepool.VerifyCommit())
				})
			}
			for i := range tt.units / 2 {
				unit(i)
			}
			time.Sleep(100 * time.Millisecond)
			if err := s.Kill(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			close(dead)
			for i := tt.units / 2; i < tt.units; i++ {
				unit(i)
				if (i-tt.units/2)%(tt.units/20+1) == 0 {
					time.Sleep(100 * time.Millisecond)
				}
			}
			time.Sleep(time.Until(began.Add(3 * time.Second)))
			starting := time.Now()
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			ready := time.Now()
			wg.Wait()
			labtest.CheckNoErrors(t, errs)
			checkEachOnce(t, s, tt.units)
			total := 0
			if err := s.QueryRow("SELECT SUM(balance) FROM test.account", &total); err != nil || total != tt.units {
				t.Errorf("the balances are %d together, %v; want %d", total, err, tt.units)
			}
			dials, away := k.between(began, starting), starting.Sub(began)
			st := p.Stats()
			t.Logf("%d attempts in an outage of %s, one per %s; the server took %s to start, the units %s more; %d retried, %d commits resolved",
				dials, away.Round(time.Millisecond), (away / time.Duration(max(dials, 1))).Round(time.Millisecond),
				ready.Sub(starting).Round(time.Millisecond), time.Since(ready).Round(time.Millisecond), st.Retried, st.CommitsResolved)
			// Those that had a place may each have found out by themselves, and
			// what the killed units left behind is looked after on the side.
			if most := int(away/(20*time.Millisecond)) + 30; dials > most {
				t.Errorf("%d attempts, want at most %d", dials, most)
			}
			if dials < 20 {
				t.Errorf("%d attempts: nobody looked for the server", dials)
			}
		})
	}
}

// After an outage whose end is known to the moment, the first unit is applied at
// once, and soon after every worker is back at work.
func TestOutageBackAtWorkAtOnce(t *testing.T) {
	const workers, outages = 8, 10
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p, k := openCounting(t, s.DSNVia(via.Addr()), nil)
	var stop atomic.Bool
	var mu sync.Mutex
	done := map[int][]time.Time{} // by worker
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for !stop.Load() {
				if err := p.WithSession(t.Context(), labtest.Insert(w), livepool.VerifyCommit()); err != nil {
					t.Errorf("a unit failed: %v", err)
					return
				}
				mu.Lock()
				done[w] = append(done[w], time.Now())
				mu.Unlock()
				time.Sleep(time.Millisecond)
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	var ends []time.Time
	dials := 0
	for range outages {
		via.Refuse()
		via.RST()
		began := time.Now()
		time.Sleep(500 * time.Millisecond)
		if err := via.Reopen(); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, time.Now())
		dials += k.between(began, ends[len(ends)-1])
		time.Sleep(500 * time.Millisecond) // or a unit would lose its connection twice over one statement, and be given up
	}
	time.Sleep(200 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	if t.Failed() {
		return
	}
	var first, all []time.Duration
	for _, end := range ends {
		earliest, latest := time.Hour, time.Duration(0)
		for _, times := range done {
			took := time.Hour
			if i := slices.IndexFunc(times, func(at time.Time) bool { return at.After(end) }); i >= 0 {
				took = times[i].Sub(end)
			}
			earliest, latest = min(earliest, took), max(latest, took)
		}
		first, all = append(first, earliest), append(all, latest)
	}
	slices.Sort(first)
	slices.Sort(all)
	t.Logf("after the end of an outage of 500ms: the first unit after %s (median; %s to %s), all %d workers after %s (median; %s to %s); %d attempts in each outage",
		first[outages/2], first[0], first[outages-1], workers, all[outages/2], all[0], all[outages-1], dials/outages)
	if first[outages/2] > time.Second || all[outages/2] > 2*time.Second {
		t.Error("that is too long")
	}
	if dials > outages*(500/20+workers+5) {
		t.Errorf("%d attempts in %d outages", dials, outages)
	}
}

// Whatever sort of outage it is: the units that wait, and those that come
// meanwhile, go on at its end, and the attempts under way are few.
func TestOutagesOfEachSort(t *testing.T) {
	t.Parallel()
	s, _ := openLedger(t, server.MariaDB)
	for _, tt := range []struct {
		name       string
		begin, end func(via *proxy.Proxy, k *countingDialer) error
	}{
		{"refused",
			func(via *proxy.Proxy, _ *countingDialer) error { via.Refuse(); via.RST(); return nil },
			func(via *proxy.Proxy, _ *countingDialer) error { return via.Reopen() }},
		{"accepted and reset",
			func(via *proxy.Proxy, _ *countingDialer) error { via.SetUpstreams(); via.RST(); return nil },
			func(via *proxy.Proxy, _ *countingDialer) error { via.SetUpstream(s.Addr()); return nil }},
		{"accepted and silent, for new connections only",
			func(via *proxy.Proxy, _ *countingDialer) error { via.FIN(); via.HangNew(true); return nil },
			func(via *proxy.Proxy, _ *countingDialer) error { via.HangNew(false); return nil }},
		{"a black hole",
			func(via *proxy.Proxy, _ *countingDialer) error { via.HangNew(true); via.Stall(); return nil },
			func(via *proxy.Proxy, _ *countingDialer) error { via.Heal(); return nil }},
		{"SIGSTOP",
			func(*proxy.Proxy, *countingDialer) error { return s.Pause() },
			func(*proxy.Proxy, *countingDialer) error { return s.Resume() }},
		{"a name that does not resolve",
			func(via *proxy.Proxy, k *countingDialer) error {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.fail = func() error {
					return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "db"}}
				}
				via.RST()
				return nil
			},
			func(_ *proxy.Proxy, k *countingDialer) error {
				k.mu.Lock()
				defer k.mu.Unlock()
				k.fail = nil
				return nil
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const units = 100
			if err := s.Exec("TRUNCATE test.t"); err != nil {
				t.Fatal(err)
			}
			via := proxyTo(t, s)
			p, k := openCounting(t, s.DSNVia(via.Addr()), func(c *livepool.Config) {
				c.ConnectTimeout, c.PingTimeout, c.CommitTimeout = 300*time.Millisecond, 200*time.Millisecond, 300*time.Millisecond
			})
			warmReal(t, p.DB, 4)
			time.Sleep(550 * time.Millisecond) // beyond the trust of a recent round trip
			if err := tt.begin(via, k); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			errs := make([]error, units)
			var wg sync.WaitGroup
			for i := range units {
				wg.Go(func() { errs[i] = p.WithSession(t.Context(), labtest.Insert(i), livepool.VerifyCommit()) })
				if i%10 == 0 {
					time.Sleep(100 * time.Millisecond)
				}
			}
			time.Sleep(time.Until(began.Add(1200 * time.Millisecond)))
			dials, open := k.between(began, time.Now()), via.Conns()
			most := int(time.Since(began)/(20*time.Millisecond)) + 25
			if err := tt.end(via, k); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			wg.Wait()
			took := time.Since(back)
			labtest.CheckNoErrors(t, errs)
			checkEachOnce(t, s, units)
			t.Logf("%d attempts in 1.2s, %d connections open at its end; all %d units done %s after it", dials, open, units, took.Round(time.Millisecond))
			if dials > most || open > 30 {
				t.Errorf("%d attempts, %d connections", dials, open)
			}
			if took > 15*time.Second {
				t.Errorf("the units took %s", took)
			}
		})
	}
}

// A unit in the middle of its transaction when the server dies is run again
// after the outage, as a whole, and applied once; MaxElapsed counts, the
// outage costs one attempt.
func TestOutageInTheMiddleOfATransaction(t *testing.T) {
	const units = 10
	s, _ := openLedger(t, server.MariaDB)
	p, _ := openCounting(t, s.DSN(), nil)
	var inside sync.WaitGroup
	inside.Add(units)
	dead := make(chan struct{})
	runs := make([]atomic.Int32, units)
	errs := make([]error, units)
	var wg sync.WaitGroup
	for i := range units {
		wg.Go(func() {
			errs[i] = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
				first := runs[i].Add(1) == 1
				if err := labtest.Insert(i)(ctx, s); err != nil {
					return err
				}
				if first {
					inside.Done()
					<-dead
				}
				_, err := s.ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = ?", i%9+1)
				return err
			})
		})
	}
	inside.Wait()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	close(dead)
	time.Sleep(700 * time.Millisecond)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	labtest.CheckNoErrors(t, errs)
	checkEachOnce(t, s, units)
	total := 0
	if err := s.QueryRow("SELECT SUM(balance) FROM test.account", &total); err != nil || total != units {
		t.Errorf("the balances are %d together, %v; want %d", total, err, units)
	}
	for i := range runs {
		// The first attempt died, the second waited for the server.
		if n := runs[i].Load(); n != 2 {
			t.Errorf("unit %d was run %d times, want 2", i, n)
		}
	}
}

// cutUnits returns units all of which are in their transactions when the
// network goes away.
func cutUnits(t *testing.T, units int, p *livepool.Pool, via *proxy.Proxy) (wait func() []error) {
	t.Helper()
	var inside sync.WaitGroup
	inside.Add(units)
	gone := make(chan struct{})
	wait = labtest.StartUnits(t.Context(), units, p, func(ctx context.Context, s *livepool.Session) error {
		if err := labtest.Insert(1)(ctx, s); err != nil {
			return err
		}
		if s.Attempt() == 1 {
			inside.Done()
			<-gone
		}
		return labtest.Insert(1)(ctx, s)
	})
	inside.Wait()
	via.Refuse()
	via.RST()
	close(gone)
	return wait
}

// Also where all units were in the middle of their transactions, so that nobody
// was about to connect, they go on at once when the server is back.
func TestOutageThatMeetsEveryUnitInTheMiddle(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	var late []time.Duration
	for _, lasts := range []time.Duration{200, 400, 600, 800, 1100} {
		via := proxyTo(t, s)
		p, k := openCounting(t, s.DSNVia(via.Addr()), nil)
		began := time.Now()
		wait := cutUnits(t, 8, p, via)
		time.Sleep(lasts * time.Millisecond)
		dials := k.between(began, time.Now())
		if err := via.Reopen(); err != nil {
			t.Fatal(err)
		}
		back := time.Now()
		labtest.CheckNoErrors(t, wait())
		late = append(late, time.Since(back))
		t.Logf("after %d attempts in an outage of %s all 8 units were done %s after its end", dials, lasts*time.Millisecond, late[len(late)-1].Round(time.Millisecond))
	}
	slices.Sort(late)
	if late[len(late)/2] > time.Second {
		t.Errorf("median %s", late[len(late)/2])
	}
}

// Close does not wait for the server, but as long as it looks after what the
// units left behind, which is PingTimeout.
func TestOutageCloseAfterUnitsWereCut(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	via := proxyTo(t, s)
	p, _ := openCounting(t, s.DSNVia(via.Addr()), nil)
	wait := cutUnits(t, 8, p, via)
	time.Sleep(300 * time.Millisecond)
	start := time.Now()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	closed := time.Since(start)
	for _, err := range wait() {
		if err == nil {
			t.Error("a unit succeeded")
		}
	}
	t.Logf("Close took %s, the last unit %s", closed, time.Since(start))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("Close took %s, and the last unit ended after %s", closed, took)
	}
}

// Where no server has ever been, units wait as well: a worker may be started
// before its database.
func TestOutageFromTheStart(t *testing.T) {
	s, _ := openLedger(t, server.MariaDB)
	l, err := loopback.Listen()
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // a port at which nobody listens
	var at atomic.Pointer[string]
	addr := l.Addr().String()
	at.Store(&addr)
	p := openWith(t, s.DSNVia(addr), func(c *livepool.Config) {
		c.Logger = labtest.DiscardLogger
		c.MySQL.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, *at.Load())
		}
	})
	wait := labtest.StartUnits(t.Context(), 50, p, labtest.Insert(1))
	time.Sleep(300 * time.Millisecond)
	real := s.Addr()
	at.Store(&real)
	labtest.CheckNoErrors(t, wait())
	if n := count(t, s, "t"); n != 50 {
		t.Errorf("%d rows, want 50", n)
	}
}
