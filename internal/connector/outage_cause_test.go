package connector_test

// What is an outage, and what is none.

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
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
		"a server that is shutting down":                   func(context.Context) error { return fakedb.ServerError(1053, "Server shutdown in progress") },
		"its own time limit": func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			<-ctx.Done()
			return fmt.Errorf("dialling: %w", ctx.Err())
		},
		"its own time limit, as net.Dialer puts it": func(ctx context.Context) error {
			time.Sleep(300 * time.Millisecond)
			return &net.OpError{Op: "dial", Net: "tcp", Err: labtest.NetTimeoutError{}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newOutageDB()
				a.setFailure(why)
				p := labtest.OpenFake(t, &a.DB, nil)
				wait := labtest.StartUnits(t.Context(), 50, p, labtest.Work)
				time.Sleep(20 * time.Second)
				times, most := a.takeDials()
				a.setFailure(nil)
				labtest.CheckNoErrors(t, wait())
				if len(times) > 1000 || most > 5 {
					t.Errorf("%d attempts in 20s, %d at a time", len(times), most)
				}
			})
		})
	}
}

// A server that refuses can be reached: nobody waits for what will not pass.
func TestOutageIsNotAccessDenied(t *testing.T) {
	denied := func(context.Context) error { return fakedb.ServerError(1045, "Access denied for user 'app'@'%'") }
	t.Run("from the start", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newOutageDB()
			a.setFailure(denied)
			p := labtest.OpenFake(t, &a.DB, nil)
			start := time.Now()
			for _, err := range labtest.StartUnits(t.Context(), 100, p, labtest.Work)() {
				if !labtest.IsServerError(err, 1045) {
					t.Fatalf("%v, want error 1045", err)
				}
			}
			times, _ := a.takeDials()
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
			a := newOutageDB()
			a.setFailure(dialRefused)
			p := labtest.OpenFake(t, &a.DB, nil)
			wait := labtest.StartUnits(t.Context(), 100, p, labtest.Work)
			time.Sleep(time.Second)
			a.setFailure(denied)
			start := time.Now()
			for _, err := range wait() {
				if !labtest.IsServerError(err, 1045) {
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
		fakedb.ServerError(1040, "Too many connections"),
		fakedb.ServerError(1203, "User app already has more than 'max_user_connections' active connections"),
		fakedb.ServerError(1226, "User 'app' has exceeded the 'max_user_connections' resource (current value: 3)"),
	} {
		full := func(context.Context) error { return refusal }
		for name, before := range map[string]func(context.Context) error{"from the start": nil, "after an outage": dialRefused} {
			t.Run(fmt.Sprint(name, ", ", refusal), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a := newOutageDB()
					var log labtest.CapturedLog
					p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { c.Logger = slog.New(&log) })
					a.setFailure(full)
					if before != nil {
						a.setFailure(before)
					}
					wait := labtest.StartUnits(t.Context(), 16, p, labtest.Work, livepool.MaxAttempts(1))
					plain := make(chan error, 1)
					time.Sleep(5 * time.Second)
					a.setFailure(full)
					go func() { _, err := p.ExecContext(t.Context(), "DO 1"); plain <- err }()
					time.Sleep(7 * time.Second)
					times, most := a.takeDials()
					a.setFailure(nil)
					back := time.Now()
					labtest.CheckNoErrors(t, wait())
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
					if st := p.Stats(); st.Outages != 1 || st.Retried != 0 || len(log.LinesWith("")) != 2 {
						t.Errorf("%d outages, %d retried, and told was %q", st.Outages, st.Retried, log.LinesWith(""))
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
		a := newOutageDB()
		p := labtest.OpenFake(t, &a.DB, nil)
		held, _ := fakedb.Take(t, p.DB, 2)
		a.setFailure(func(context.Context) error { return fakedb.ServerError(1040, "Too many connections") })
		wait := labtest.StartUnits(t.Context(), 8, p, func(ctx context.Context, s *livepool.Session) error {
			defer time.Sleep(10 * time.Millisecond)
			return labtest.Work(ctx, s)
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
		fakedb.GiveBack(held)
		labtest.CheckNoErrors(t, wait())
		wg.Wait()
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("16 callers took %s with two connections", took)
		}
		if n := len(a.Conns()); n != 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// Somebody else's patience is not the unit's: while the server is silent,
// statements with little of it fail, and units that begin meanwhile wait.
func TestOutageSomebodyElsesContextIsNotTheUnits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		a.setFailure(dialSilent)
		p := labtest.OpenFake(t, &a.DB, func(c *livepool.Config) { waitLong(c); c.ConnectTimeout = time.Second })
		early := labtest.StartUnits(t.Context(), 5, p, labtest.Work)
		time.Sleep(3 * time.Second)
		var waits []func() []error
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if _, err := p.ExecContext(ctx, "DO 1"); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			waits = append(waits, labtest.StartUnits(t.Context(), 1, p, labtest.Work))
			time.Sleep(10 * time.Millisecond)
		}
		a.setFailure(nil)
		labtest.CheckNoErrors(t, early())
		for _, wait := range waits {
			labtest.CheckNoErrors(t, wait())
		}
	})
}

// A caller without patience says nothing of the server.
func TestOutageIsNotACallersTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newOutageDB()
		a.setFailure(dialSilent)
		p := labtest.OpenFake(t, &a.DB, nil)
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
		a := newOutageDB()
		a.setFailure(dialSilent)
		p := labtest.OpenFake(t, &a.DB, waitLong)
		wait := labtest.StartUnits(t.Context(), 5, p, labtest.Work)
		time.Sleep(20 * time.Second)
		a.setFailure(nil) // for new ones: those under way stay silent until ConnectTimeout
		labtest.CheckNoErrors(t, wait())
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
		a := newOutageDB()
		a.setFailure(dialSilent)
		p := labtest.OpenFake(t, &a.DB, nil)
		wait := labtest.StartUnits(t.Context(), 1, p, labtest.Work)
		time.Sleep(4 * time.Second)
		a.setFailure(nil)
		held, _ := fakedb.Take(t, p.DB, 2)
		labtest.CheckNoErrors(t, wait())
		fakedb.GiveBack(held)
		if n := p.Stats(); n.Outages != 0 || n.ConnectFailed == 0 {
			t.Errorf("%d outages, %d failures", n.Outages, n.ConnectFailed)
		}
	})
}
