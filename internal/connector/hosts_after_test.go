package connector_test

// Units FromReplica that are After a token, on hosts that are fakes; and when the primary serves
// a unit in a replica's place.

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/trace"
)

var after = []livepool.SessionOption{livepool.ReadOnly(), livepool.FromReplica(), livepool.After("token")}

// lookups answers the looks for a token, one after the other, and counts them; the last answer
// stays. "" is a refusal.
func lookups(h *fakedb.Host, answers ...string) *atomic.Int64 {
	n := new(atomic.Int64)
	h.OnQuery = func(q string) ([]string, error) {
		if !strings.HasPrefix(q, "SELECT COUNT(*) FROM") {
			return nil, fakedb.ServerError(1227, "refused")
		}
		switch answer := answers[min(int(n.Add(1)), len(answers))-1]; answer {
		case "":
			return nil, fakedb.ServerError(1142, "SELECT denied")
		default:
			return []string{answer}, nil
		}
	}
	return n
}

// A pool that only reads is refused no write, and so is not told that its primary was demoted:
// that one may lack what a unit is After, and is asked before it serves one.
func TestDemotedPrimaryDoesNotServeWhatItMayLack(t *testing.T) {
	for _, pause := range []time.Duration{10 * time.Second, 100 * time.Millisecond} {
		t.Run(pause.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, a, b := openPair(t, nil)
				if err := p.WithSession(t.Context(), labtest.Work); err != nil { // the pool has a connection to a
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				a.ReadOnly.Store(true) // the switch
				b.ReadOnly.Store(false)
				b.Kill() // and a restart of b's connections
				lookups(a, "0")
				lookups(b, "1")
				stale := 0
				a.OnExec = func(context.Context, *fakedb.Conn, string) error { stale++; return nil }
				for range 60 {
					time.Sleep(pause)
					err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						_, err := s.ExecContext(ctx, "SELECT 1")
						return err
					}, after...)
					if err != nil {
						t.Error(err)
					}
				}
				if stale > 0 {
					t.Errorf("%d of 60 units were served by a, which lacks what they are after", stale)
				}
			})
		})
	}
}

// The question whether the primary is one costs a round trip where it is needed, and nowhere else.
func TestPrimaryIsAskedForUnitsThatAreAfterAToken(t *testing.T) {
	for _, tt := range []struct {
		name string
		opts []livepool.SessionOption
		asks int64
	}{
		{"writes", nil, 0},
		{"reads", []livepool.SessionOption{livepool.ReadOnly()}, 0},
		{"from a replica", fromReplica, 0},
		{"after a token", after, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, a, b := openPair(t, nil)
				lookups(b, "0")
				if tt.asks == 0 {
					b.OnExec = func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }
				}
				if err := p.WithSession(t.Context(), labtest.Work); err != nil {
					t.Fatal(err)
				}
				was := a.Asked.Load()
				if err := p.WithSession(t.Context(), labtest.Work, tt.opts...); err != nil || a.Asked.Load()-was != tt.asks {
					t.Errorf("%v; asked %d times, want %d", err, a.Asked.Load()-was, tt.asks)
				}
			})
		})
	}
}

// A primary that does not answer the question is lost like one that does not answer BEGIN: the
// unit gets another connection.
func TestQuestionForThePrimaryThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, a, b := openPair(t, nil)
		lookups(b, "0")
		if err := p.WithSession(t.Context(), labtest.Work); err != nil {
			t.Fatal(err)
		}
		lost := false
		a.OnRole = func(context.Context) error {
			if lost {
				return nil
			}
			lost = true
			return fakedb.ErrGone
		}
		runs := 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			runs++
			return labtest.Work(ctx, s)
		}, append(after, livepool.MaxAttempts(1))...)
		if err != nil || !lost || runs != 1 {
			t.Errorf("%v; asked: %v, %d runs", err, lost, runs)
		}
	})
}

// Where After could not keep its promise it is refused, with the reason.
func TestAfterIsRefusedWhereItProvesNothing(t *testing.T) {
	nested := func(outer []livepool.SessionOption, inner ...livepool.SessionOption) func(p *livepool.Pool) error {
		return func(p *livepool.Pool) error {
			return p.WithSession(context.Background(), func(ctx context.Context, _ *livepool.Session) error {
				return p.WithSession(ctx, labtest.Work, inner...)
			}, outer...)
		}
	}
	alone := func(opts ...livepool.SessionOption) func(p *livepool.Pool) error {
		return func(p *livepool.Pool) error { return p.WithSession(context.Background(), labtest.Work, opts...) }
	}
	with := func(more livepool.SessionOption) []livepool.SessionOption { return append(after, more) }
	for _, tt := range []struct {
		name   string
		target livepool.Target
		run    func(p *livepool.Pool) error
		says   string // "": it runs
	}{
		{"read uncommitted", livepool.TargetPrimary, alone(with(livepool.Isolation(sql.LevelReadUncommitted))...), "Read Uncommitted"},
		{"serializable", livepool.TargetPrimary, alone(with(livepool.Isolation(sql.LevelSerializable))...), "Serializable"},
		{"repeatable read", livepool.TargetPrimary, alone(with(livepool.Isolation(sql.LevelRepeatableRead))...), ""},
		{"serializable, after nothing", livepool.TargetPrimary, alone(append(fromReplica, livepool.After(""), livepool.Isolation(sql.LevelSerializable))...), ""},
		{"replica", livepool.TargetReplica, alone(after...), "pool_target=replica"},
		{"prefer-replica", livepool.TargetPreferReplica, alone(after...), "pool_target=prefer-replica"},
		{"any", livepool.TargetAny, alone(after...), "pool_target=any"},
		{"inside one from a replica", livepool.TargetPrimary, nested(fromReplica, after...), "give After to the outer unit"},
		{"inside one after another", livepool.TargetPrimary, nested(append(fromReplica, livepool.After("other")), after...), "give After to the outer unit"},
		{"inside one after the same", livepool.TargetPrimary, nested(after, after...), ""},
		{"inside one with a session of its own", livepool.TargetPrimary, nested(fromReplica, with(livepool.RequiresNew())...), ""},
		{"inside one that writes", livepool.TargetPrimary, nested(nil, after...), ""},
		{"from a replica, inside one that writes", livepool.TargetPrimary, nested(nil, fromReplica...), ""},
		{"from a replica, inside one that reads", livepool.TargetPrimary, nested([]livepool.SessionOption{livepool.ReadOnly()}, fromReplica...), ""},
		{"only reads, inside one that writes", livepool.TargetPrimary, nested(nil, livepool.ReadOnly()), "make it read-only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				lookups(a, "1")
				lookups(b, "1")
				p, _ := openHosts(t, func(c *livepool.Config) { wrapAll(a, b)(c); c.Target = tt.target }, a, b)
				err := tt.run(p)
				if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v, want %q", err, tt.says)
				}
			})
		})
	}
}

// How often a replica is asked for a token, who serves the unit, and what its function and its
// caller see. A refusal will not pass, and is not waited for.
func TestLooksForAToken(t *testing.T) {
	own := errors.New("own")
	for _, tt := range []struct {
		name     string
		answers  []string
		schema   string
		asked    int64 // at least
		most     int64
		replicas int64 // units that they serve
	}{
		{"it is there", []string{"1"}, "shop", 1, 1, 1},
		{"it comes", []string{"0", "0", "1", "1"}, "shop", 4, 4, 1},
		{"it is on one replica of two", []string{"0", "1", "0"}, "shop", 3, 3, 0},
		{"it never comes", []string{"0"}, "shop", 50, 110, 0},
		{"refused", []string{""}, "shop", 1, 1, 0},
		{"refused later", []string{"0", "0", ""}, "shop", 3, 3, 0},
		{"the table has no schema", []string{"1"}, "", 0, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, b := openPair(t, func(c *livepool.Config) { c.MySQL.DBName = tt.schema })
				asked, opened := lookups(b, tt.answers...), len(b.Conns())
				start, runs, attempt := time.Now(), 0, 0
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					runs++
					attempt = s.Attempt()
					return labtest.Work(ctx, s)
				}, after...)
				served := p.Stats().ServedByReplica - 1
				if n := asked.Load(); err != nil || runs != 1 || attempt != 1 || n < tt.asked || n > tt.most || served != tt.replicas || time.Since(start) > 600*time.Millisecond {
					t.Errorf("%v; %d runs, the last is attempt %d, asked %d times, %d served by replicas, took %s", err, runs, attempt, n, served, time.Since(start))
				}
				if more := len(b.Conns()) - opened; more > 0 {
					t.Errorf("%d connections to the replica were replaced", more)
				}
				if retried := p.Stats().Retried; retried != 0 {
					t.Errorf("%d units were run again, whose function was not", retried)
				}
				b.OnQuery = nil
				lookups(b, tt.answers...)
				if err := p.WithSession(t.Context(), func(context.Context, *livepool.Session) error { return own }, after...); err != own {
					t.Errorf("the function's own error is returned as %v", err)
				}
			})
		})
	}
}

// A caller whose context ends before the function was called is told that, and nothing of tokens.
func TestContextEndsWhileATokenIsLookedFor(t *testing.T) {
	for _, at := range []int64{1, 2, 40} { // the first look, the first of those that wait, a later one
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, b := openPair(t, nil)
				ctx, cancel := context.WithCancelCause(t.Context())
				asked := lookups(b, "0")
				answer := b.OnQuery
				b.OnQuery = func(q string) ([]string, error) {
					if asked.Load() == at-1 {
						cancel(errors.New("the caller has left"))
					}
					return answer(q)
				}
				err := p.WithSession(ctx, labtest.Work, after...)
				if !errors.Is(err, context.Canceled) || !errors.Is(err, livepool.ErrSessionDone) || !livepool.Retryable(err) ||
					!strings.Contains(err.Error(), "the caller has left") || strings.Contains(err.Error(), "replica") {
					t.Errorf("%v; Retryable: %v", err, livepool.Retryable(err))
				}
				if served := p.Stats().ServedByReplica - 1; served != 0 {
					t.Errorf("%d served by replicas", served)
				}
			})
		})
	}
}

// Whether the primary serves a unit in the replica's place is decided by what its session saw,
// and not by what the function returns: that may be of another unit, which would be repeated.
func TestWhatAFunctionReturnsDoesNotHaveItRunAgain(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for name, ends := range map[string]func(ctx context.Context, p *livepool.Pool) error{
		"another pool is closed": func(context.Context, *livepool.Pool) error { return fmt.Errorf("other: %w", livepool.ErrPoolClosed) },
		"an inner unit's context has ended": func(_ context.Context, p *livepool.Pool) error {
			return p.WithSession(ended, labtest.Work, livepool.RequiresNew())
		},
		"another commit is unknown": func(context.Context, *livepool.Pool) error {
			return errors.Join(fmt.Errorf("other: %w", livepool.ErrCommitUnknown), livepool.ErrPoolTimeout)
		},
	} {
		for _, opts := range [][]livepool.SessionOption{{livepool.ReadOnly()}, fromReplica} {
			t.Run(fmt.Sprint(name, len(opts)), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p, _, _ := openPair(t, nil)
					runs := 0
					err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
						runs++
						return errors.Join(labtest.Work(ctx, s), ends(ctx, p))
					}, opts...)
					if err == nil || runs != 1 {
						t.Errorf("%d runs; %v", runs, err)
					}
				})
			})
		}
	}
}

// A unit that got no connection to a replica is served by the primary, also if its function
// swallows that; unless the function returns that another unit's commit is unknown.
func TestUnitWithoutAConnectionToAReplica(t *testing.T) {
	for _, tt := range []struct {
		name    string
		returns func(error) error
		runs    int
	}{
		{"returned", func(err error) error { return err }, 2},
		{"swallowed", func(error) error { return nil }, 2},
		{"replaced", func(err error) error {
			if err != nil {
				return errors.New("own")
			}
			return nil
		}, 2},
		{"with an unknown commit", func(err error) error { return errors.Join(err, livepool.ErrCommitUnknown) }, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _, b := openPair(t, nil)
				b.OnConnect = func(context.Context, int64) error { return fakedb.ServerError(1045, "Access denied") }
				b.Kill()
				time.Sleep(time.Minute)
				runs := 0
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					runs++
					return tt.returns(labtest.Work(ctx, s))
				}, fromReplica...)
				if runs != tt.runs || (err == nil) != (tt.runs == 2) {
					t.Errorf("%d runs; %v", runs, err)
				}
			})
		})
	}
}

// A COMMIT of a unit that only reads, of which a replica's answer was lost, is no reason to fail.
func TestLostCommitOfAReadOnAReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _, b := openPair(t, nil)
		b.OnCommit = func(c *fakedb.Conn) error { c.Valid.Store(false); return fakedb.ErrGone }
		if err := p.WithSession(t.Context(), labtest.Work, fromReplica...); err != nil {
			t.Error(err)
		}
	})
}

type slowCloser struct{ driver.Connector }

func (c slowCloser) Close() error { time.Sleep(2 * time.Second); return nil }

// From its begin on Close is told to all that need a connection, though database/sql knows of it
// before livepool does, and closing the connections to replicas takes its time.
func TestCloseIsToldWhileItLasts(t *testing.T) {
	for _, isOpen := range []bool{false, true} {
		t.Run(fmt.Sprint("replicas ", isOpen), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := newHost("a", false), newHost("b", true)
				p, _ := openHosts(t, func(c *livepool.Config) {
					wrapAll(a, b)(c)
					wrap := c.Wrap
					c.Wrap = func(d driver.Connector) driver.Connector { return slowCloser{wrap(d)} }
				}, a, b)
				if isOpen {
					if err := p.WithSession(t.Context(), labtest.Work, fromReplica...); err != nil {
						t.Fatal(err)
					}
				}
				closed := make(chan struct{})
				go func() { defer close(closed); _ = p.Close() }()
				for range 4 {
					time.Sleep(900 * time.Millisecond)
					for _, opts := range [][]livepool.SessionOption{nil, fromReplica, after} {
						err := p.WithSession(t.Context(), labtest.Work, opts...)
						if !errors.Is(err, livepool.ErrPoolClosed) || !livepool.Retryable(err) {
							t.Errorf("a unit: %v", err)
						}
					}
					if err := p.Ready(t.Context()); !errors.Is(err, livepool.ErrPoolClosed) {
						t.Errorf("Ready: %v", err)
					}
				}
				<-closed
			})
		})
	}
}

// database/sql may be closed by itself, and before livepool knows.
func TestUnitsAndReadyWhileOnlyDatabaseSQLIsClosed(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			p, _, _ := openPair(t, nil)
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for err := error(nil); !errors.Is(err, livepool.ErrPoolClosed); runtime.Gosched() {
						if err = p.WithSession(context.Background(), labtest.Work); i == 0 {
							err = p.Ready(context.Background())
						}
						if err != nil && !errors.Is(err, livepool.ErrPoolClosed) {
							t.Errorf("%d: %v", i, err)
						}
					}
				})
			}
			runtime.Gosched()
			_ = p.DB.Close()
			wg.Wait()
		})
	}
}

// However a function ends on a replica, the tracer is told that it was an attempt, and how it
// ended; and the places of the replicas' pool are free again.
func TestPanicOnAReplicaIsTraced(t *testing.T) {
	for _, tt := range []struct {
		name string
		ends func(s *livepool.Session)
		want trace.Outcome
	}{
		{"panic", func(*livepool.Session) { panic("x") }, trace.NotApplied},
		{"Goexit", func(*livepool.Session) { runtime.Goexit() }, trace.NotApplied},
		{"Goexit in a hook", func(s *livepool.Session) { s.AfterCommit(func(context.Context) { runtime.Goexit() }) }, trace.Applied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tracer := &unitTracer{}
				p, _, _ := openPair(t, func(c *livepool.Config) { c.Tracer, c.PoolSize, c.MaxOverflow = tracer, 1, 0 })
				for range 3 {
					tracer.told = nil
					done := make(chan struct{})
					go func() {
						defer close(done)
						defer func() { _ = recover() }()
						_ = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
							err := labtest.Work(ctx, s)
							tt.ends(s)
							return err
						}, append(fromReplica, livepool.Name("report"))...)
					}()
					<-done
					if told, want := strings.Join(tracer.told, "\n"), fmt.Sprintf("end report: %v after 1 attempts", tt.want); !strings.Contains(told, want) {
						t.Errorf("told %q, want %q", told, want)
					}
				}
			})
		})
	}
}

// retryTracer notes each unit that is run again.
type retryTracer struct {
	unitTracer
	retries []trace.Retry
}

func (r *retryTracer) TraceEvent(_ context.Context, e trace.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if retry, ok := e.(trace.Retry); ok {
		r.retries = append(r.retries, retry)
	}
}

// A unit whose function has run on a replica, and runs again on the primary, is told as any that
// is run again: to the counters, the tracer and the log.
func TestUnitThatThePrimaryServesAfterAReplicaIsToldAsRunAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newHost("a", false), newHost("b", true)
		deadlock := func(context.Context, *fakedb.Conn, string) error { return fakedb.ServerError(1213, "Deadlock found") }
		b.OnExec = deadlock
		a.OnExec = func(ctx context.Context, c *fakedb.Conn, query string) error {
			a.OnExec = nil
			return deadlock(ctx, c, query)
		}
		tracer := &retryTracer{}
		p, log := openHosts(t, func(c *livepool.Config) { wrapAll(a, b)(c); c.Tracer = tracer }, a, b)
		start, last := time.Now(), 0
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			last = s.Attempt()
			return labtest.Work(ctx, s)
		}, append(fromReplica, livepool.MaxAttempts(2))...) // of which the replica's is none
		if err != nil || last != 3 || p.Stats().Retried != 2 || p.Stats().ServedByReplica != 0 || time.Since(start) > time.Second {
			t.Errorf("%v by attempt %d; %d run again, %d served by replicas", err, last, p.Stats().Retried, p.Stats().ServedByReplica)
		}
		if len(tracer.retries) != 2 || !labtest.IsServerError(tracer.retries[0].Cause, 1213) || tracer.retries[0].Attempt != 1 {
			t.Errorf("traced: %v", tracer.retries)
		}
		if lines := log.LinesWith("is run again"); len(lines) != 2 || !strings.Contains(lines[0], "Deadlock") || strings.Contains(lines[0], "MaxAttempts") {
			t.Errorf("logged: %q", lines)
		}
	})
}

// MaxElapsed counts from when a replica was first asked for a connection.
func TestMaxElapsedCountsFromTheReplica(t *testing.T) {
	for _, tt := range []struct {
		name  string
		works time.Duration // on the replica, before that fails
		runs  int
		opts  []livepool.SessionOption
	}{
		{"within it", 2 * time.Second, 2, fromReplica},
		{"beyond it", 8 * time.Second, 1, fromReplica},
		{"the replica does not have the token", 2 * time.Second, 2, after},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, a, b := openPair(t, func(c *livepool.Config) { c.MaxElapsed = 5 * time.Second })
				b.OnExec = func(context.Context, *fakedb.Conn, string) error {
					time.Sleep(tt.works)
					return fakedb.ServerError(1213, "Deadlock found")
				}
				lookups(b, "0")
				a.OnExec = func(context.Context, *fakedb.Conn, string) error {
					time.Sleep(4 * time.Second)
					return fakedb.ServerError(1213, "Deadlock found")
				}
				runs := 0
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					runs++
					return labtest.Work(ctx, s)
				}, tt.opts...)
				if runs != tt.runs || err == nil || !strings.Contains(err.Error(), "pool_max_elapsed") {
					t.Errorf("%d runs, want %d: %v", runs, tt.runs, err)
				}
			})
		})
	}
}

// A unit that only reads, and succeeds when it is run again, says nothing of writes: those that
// wait for them go on waiting.
func TestReadThatIsRunAgainDoesNotEndTheWaitForWrites(t *testing.T) {
	for _, opts := range [][]livepool.SessionOption{{livepool.ReadOnly()}, nil} {
		t.Run(fmt.Sprint(len(opts)), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := newHost("a", true)
				p, _ := openHosts(t, nil, h)
				writes := make(chan error, 1)
				go func() { writes <- p.WithSession(context.Background(), labtest.Insert(1)) }()
				time.Sleep(time.Second)
				if p.Stats().WritesRefusedSince.IsZero() {
					t.Fatal("the refused write is not noted")
				}
				runs := 0
				if err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					if runs++; runs == 1 {
						return labtest.Insert(2)(ctx, s)
					}
					return labtest.Work(ctx, s)
				}, opts...); err != nil {
					t.Error(err)
				}
				if isOver := p.Stats().WritesRefusedSince.IsZero(); runs != 2 || isOver != (opts == nil) {
					t.Errorf("%d runs, writes count as taken: %v", runs, isOver)
				}
				h.ReadOnly.Store(false)
				if err := <-writes; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
