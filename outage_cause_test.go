package livepool_test

// What is an outage, and what is none.

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

// A failure is what the dialer says it is: a name that does not resolve, a
// network that is down and a time limit of the dialer's own are outages, however
// they are put.
func TestOutageInTheWordsOfADialer(t *testing.T) {
	resolver := &net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}
	for name, why := range map[string]func(context.Context) error{
		"DNS, as net.Dialer puts it": func(context.Context) error { return &net.OpError{Op: "dial", Net: "tcp", Err: resolver} },
		"DNS, as net.Resolver puts it": func(context.Context) error {
			return fmt.Errorf("looking up the primary: %w", resolver)
		},
		"reset":      func(context.Context) error { return syscall.ECONNRESET },
		"refused":    func(context.Context) error { return syscall.ECONNREFUSED },
		"no route":   func(context.Context) error { return fmt.Errorf("dialling: %w", syscall.EHOSTUNREACH) },
		"ErrBadConn": func(context.Context) error { return driver.ErrBadConn },
		"the driver's word for a connection that was lost": func(context.Context) error { return mysql.ErrInvalidConn },
		"a server that is shutting down":                   func(context.Context) error { return serverError(1053, "Server shutdown in progress") },
		"its own time limit": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			<-ctx.Done()
			return fmt.Errorf("dialling: %w", ctx.Err())
		},
		"its own time limit, as net.Dialer puts it": func(ctx context.Context) error {
			time.Sleep(300 * time.Millisecond)
			return &net.OpError{Op: "dial", Net: "tcp", Err: netTimeout{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newAbsent()
				a.goes(why)
				p := openFake(t, &a.fake, nil)
				wait := waitingUnits(50, p, t.Context(), work)
				time.Sleep(20 * time.Second)
				times, most := a.knocked()
				a.goes(nil)
				noErrors(t, wait())
				if len(times) > 1000 || most > 5 {
					t.Errorf("%d attempts in 20s, %d at a time", len(times), most)
				}
			})
		})
	}
}

// netTimeout is what net.Dialer makes of a deadline: it is a
// context.DeadlineExceeded, whosoever deadline it was.
type netTimeout struct{}

func (netTimeout) Error() string     { return "i/o timeout" }
func (netTimeout) Timeout() bool     { return true }
func (netTimeout) Temporary() bool   { return true }
func (netTimeout) Is(err error) bool { return err == context.DeadlineExceeded }

// The driver's own timeout parameter makes an outage of a host that swallows
// what is sent to it.
func TestOutageByTheDriversTimeout(t *testing.T) {
	var away atomic.Bool
	away.Store(true)
	s := servertest.Run(t, server.MariaDB)
	p := openWith(t, withParams(s.DSN(), "timeout=100ms"), func(c *livepool.Config) {
		c.MySQL.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if away.Load() {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Net: network, Err: netTimeout{}}
			}
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	wait := waitingUnits(10, p, t.Context(), work)
	time.Sleep(500 * time.Millisecond)
	away.Store(false)
	noErrors(t, wait())
}

// A server that refuses can be reached: nobody waits for what will not pass.
func TestOutageIsNotAccessDenied(t *testing.T) {
	denied := func(context.Context) error { return serverError(1045, "Access denied for user 'app'@'%'") }
	t.Run("from the start", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAbsent()
			a.goes(denied)
			p := openFake(t, &a.fake, nil)
			start := time.Now()
			for _, err := range waitingUnits(100, p, t.Context(), work)() {
				if !isServerError(err, 1045) {
					t.Fatalf("%v, want error 1045", err)
				}
			}
			times, _ := a.knocked()
			if took := time.Since(start); took > 10*time.Millisecond || len(times) != 100 {
				t.Errorf("100 units were refused after %s and %d attempts, want one each, at once", took, len(times))
			}
			if n := p.Stats().Outages; n != 0 {
				t.Errorf("%d outages", n)
			}
		})
	})
	t.Run("after an outage", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newAbsent()
			a.goes(refused)
			p := openFake(t, &a.fake, nil)
			wait := waitingUnits(100, p, t.Context(), work)
			time.Sleep(time.Second)
			a.goes(denied)
			start := time.Now()
			for _, err := range wait() {
				if !isServerError(err, 1045) {
					t.Errorf("%v, want error 1045", err)
					break
				}
			}
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("the server has been refusing for %s when the last unit was told", took)
			}
		})
	})
}

// A server that takes no more connections is an outage for those who need one:
// they wait for its end, which the prober finds, and no attempt is used up.
func TestOutageTooManyConnections(t *testing.T) {
	for _, refusal := range []error{
		serverError(1040, "Too many connections"),
		serverError(1203, "User app already has more than 'max_user_connections' active connections"),
		serverError(1226, "User 'app' has exceeded the 'max_user_connections' resource (current value: 3)"),
	} {
		full := func(context.Context) error { return refusal }
		for name, before := range map[string]func(context.Context) error{"from the start": nil, "after an outage": refused} {
			t.Run(fmt.Sprint(name, ", ", refusal), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newAbsent()
					var log lifeLog
					p := openFake(t, &a.fake, func(c *livepool.Config) { c.Logger = slog.New(&log) })
					a.goes(full)
					if before != nil {
						a.goes(before)
					}
					wait := waitingUnits(16, p, t.Context(), work, livepool.MaxAttempts(1))
					plain := make(chan error, 1)
					time.Sleep(5 * time.Second)
					a.goes(full)
					go func() { _, err := p.ExecContext(t.Context(), "DO 1"); plain <- err }()
					time.Sleep(7 * time.Second)
					times, most := a.knocked()
					a.goes(nil)
					back := time.Now()
					noErrors(t, wait())
					if err := <-plain; err != nil {
						t.Error(err)
					}
					if took := time.Since(back); took > 1300*time.Millisecond {
						t.Errorf("the last got in %s after there was room", took)
					}
					if before == nil && (most > 2 || len(times) > 60) {
						t.Errorf("%d attempts, %d at a time", len(times), most)
					}
					synctest.Wait()
					if st := p.Stats(); st.Outages != 1 || st.Retried != 0 || len(log.about("")) != 2 {
						t.Errorf("%d outages, %d retried, and told was %q", st.Outages, st.Retried, log.about(""))
					}
				})
			})
		}
	}
}

// While the server is full a connection that is returned goes to those who wait
// for one.
func TestOutageAFullServersConnectionsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		p := openFake(t, &a.fake, nil)
		held, _ := takes(t, p.DB, 2)
		a.goes(func(context.Context) error { return serverError(1040, "Too many connections") })
		wait := waitingUnits(8, p, t.Context(), func(ctx context.Context, s *livepool.Session) error {
			defer time.Sleep(10 * time.Millisecond)
			return work(ctx, s)
		})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if _, err := p.ExecContext(t.Context(), "DO 1"); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second)
		start := time.Now()
		giveBack(held)
		noErrors(t, wait())
		wg.Wait()
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("16 callers took %s with two connections", took)
		}
		if n := len(a.all()); n != 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// A server that refuses, for real: access denied is told at once, and with too
// many connections the unit waits until there is room.
func TestOutageIsNotARefusalOnARealServer(t *testing.T) {
	s, _ := ledger(t, server.MariaDB, "--max-connections=10")
	t.Run("access denied", func(t *testing.T) {
		p, k := counted(t, strings.Replace(s.DSN(), ":"+server.Password+"@", ":wrong@", 1), nil)
		start := time.Now()
		for _, err := range waitingUnits(20, p, t.Context(), insert(1))() {
			if !isServerError(err, 1045) {
				t.Errorf("%v, want error 1045", err)
			}
		}
		if n := k.between(start, time.Now()); n != 20 {
			t.Errorf("20 units took %d attempts, want one each", n)
		}
	})
	t.Run("too many connections", func(t *testing.T) {
		plain := openPlain(t, s.DSN())
		var held []func() error
		for len(held) < 30 {
			c, err := plain.Conn(t.Context())
			if err != nil {
				break
			}
			held = append(held, c.Close)
		}
		p, _ := counted(t, s.DSN(), nil)
		wait := waitingUnits(3, p, t.Context(), insert(1))
		time.Sleep(200 * time.Millisecond)
		if n := p.Stats().ConnectFailed; n == 0 {
			t.Error("the server had room: the test shows nothing")
		}
		for _, back := range held {
			back()
		}
		plain.Close()
		start := time.Now()
		noErrors(t, wait())
		st := p.Stats()
		t.Logf("in %s after there was room; %d attempts failed, %d retried", time.Since(start), st.ConnectFailed, st.Retried)
		if st.Outages != 1 || st.Retried != 0 {
			t.Errorf("%d outages, %d retried", st.Outages, st.Retried)
		}
	})
}

// Somebody else's patience is not the unit's: while the server is silent,
// statements with little of it fail, and units that begin meanwhile wait.
func TestOutageSomebodyElsesContextIsNotTheUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, func(c *livepool.Config) { patient(c); c.ConnectTimeout = time.Second })
		early := waitingUnits(5, p, t.Context(), work)
		time.Sleep(3 * time.Second)
		var waits []func() []error
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			waits = append(waits, waitingUnits(1, p, t.Context(), work))
			time.Sleep(10 * time.Millisecond)
		}
		a.goes(nil)
		noErrors(t, early())
		for _, wait := range waits {
			noErrors(t, wait())
		}
	})
}

// A caller without patience says nothing of the server.
func TestOutageIsNotACallersPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if n := p.Stats().Outages; n != 0 {
			t.Errorf("%d outages after a caller gave up within a second", n)
		}
	})
}

// An attempt that began before the server came back, and fails after it, is no
// news: it says nothing of the server as it is now.
func TestOutageIsNotFoundByAttemptsOfYesterday(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, patient)
		wait := waitingUnits(5, p, t.Context(), work)
		time.Sleep(20 * time.Second)
		a.goes(nil) // for new ones: those under way stay silent until ConnectTimeout
		noErrors(t, wait())
		before := p.Stats()
		time.Sleep(20 * time.Second)
		if after := p.Stats(); after.Outages != before.Outages {
			t.Errorf("%d outages were found after the end of one, without any", after.Outages-before.Outages)
		}
	})
}

// The same where there was no outage: an attempt that began before later ones
// succeeded, and fails late, tells nothing.
func TestOutageIsNotFoundByALateFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAbsent()
		a.goes(silent)
		p := openFake(t, &a.fake, nil)
		wait := waitingUnits(1, p, t.Context(), work)
		time.Sleep(4 * time.Second)
		a.goes(nil)
		held, _ := takes(t, p.DB, 2)
		noErrors(t, wait())
		giveBack(held)
		if n := p.Stats(); n.Outages != 0 || n.ConnectFailed == 0 {
			t.Errorf("%d outages, %d failures", n.Outages, n.ConnectFailed)
		}
	})
}
