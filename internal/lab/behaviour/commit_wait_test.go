package behaviour_test

// A COMMIT that an honest server is kept from finishing is waited for.

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
)

// flushLock holds FLUSH TABLES WITH READ LOCK, as a backup does, until the
// function that it returns is called.
func flushLock(t *testing.T, s *server.Server) (release func()) {
	t.Helper()
	c := openBystander(t, s.DSN(), nil)
	if _, err := c.ExecContext(t.Context(), "FLUSH TABLES WITH READ LOCK"); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if _, err := c.ExecContext(context.Background(), "UNLOCK TABLES"); err != nil {
			t.Error(err)
		}
	})
}

func TestCommitHeldUpByAnHonestServerIsWaitedFor(t *testing.T) {
	const units, long = 12, 4 * time.Second
	var all parallel // it is mostly waiting
	defer all.wg.Wait()
	for _, kind := range server.Kinds() {
		all.run(t, string(kind), func(t *testing.T) {
			s := orphanServer(t, kind)
			for _, tt := range []struct{ name, params string }{
				{"looked at before", "pool_commit_timeout=1s&pool_stall_after=300ms"},
				{"looked at when it is due", "pool_commit_timeout=1s&pool_stall_after=20s"},
			} {
				for _, way := range append(proxyPaths(s), proxyPath{name: "direct"}) {
					t.Run(tt.name+", "+way.name, func(t *testing.T) {
						dsn := s.DSN()
						if way.name != "direct" {
							dsn = s.DSNVia(way.proxyTo(t, s).Addr())
						}
						p, log := openLogged(t, dsn, tt.params+"&pool_size=20")
						if err := s.Exec("DELETE FROM test.t"); err != nil {
							t.Fatal(err)
						}
						// The callers' contexts end in the middle of it.
						ctx, cancel := context.WithCancel(t.Context())
						defer cancel()
						var ready, all sync.WaitGroup
						flushed := make(chan struct{})
						ready.Add(units)
						for v := range units {
							all.Go(func() {
								runs := 0
								err := p.WithSession(ctx, func(ctx context.Context, u *livepool.Session) error {
									if err := labtest.Insert(v)(ctx, u); err != nil {
										return err
									}
									if runs++; runs == 1 {
										ready.Done()
									}
									<-flushed
									return nil
								})
								if err != nil || runs != 1 {
									t.Errorf("%d runs: %v", runs, err)
								}
							})
						}
						ready.Wait()
						release := flushLock(t, s)
						defer release()
						close(flushed)
						start := time.Now()
						time.Sleep(long / 2)
						cancel()
						time.Sleep(long / 2)
						release()
						all.Wait()
						st := p.Stats()
						t.Logf("%d rows of %d after %s, %d looks", count(t, s, "t"), units, roundMS(time.Since(start)), st.StallChecks)
						if n := count(t, s, "t"); n != units || st.CommitsUnknown != 0 || st.Stalled+st.Killed != 0 || time.Since(start) < long {
							t.Errorf("%d rows, CommitsUnknown %d, Stalled %d, Killed %d", n, st.CommitsUnknown, st.Stalled, st.Killed)
						}
						if n := len(log.LinesWith("is waited for")); n != 1 {
							t.Errorf("told %d times", n)
						}
					})
				}
			}
		})
	}
}

// So is one that waits for a replica to acknowledge it.
func TestCommitThatWaitsForAReplicaIsWaitedFor(t *testing.T) {
	var all parallel
	defer all.wg.Wait()
	for _, kind := range server.Kinds() {
		all.run(t, string(kind), func(t *testing.T) {
			s, _ := openLedger(t, kind, "--log-bin=binlog", "--server-id=1")
			turnOn := []string{"SET GLOBAL rpl_semi_sync_master_timeout = 4000", "SET GLOBAL rpl_semi_sync_master_enabled = ON"}
			if kind == server.MySQL {
				turnOn = []string{"INSTALL PLUGIN rpl_semi_sync_source SONAME 'semisync_source.so'",
					"SET GLOBAL rpl_semi_sync_source_timeout = 4000", "SET GLOBAL rpl_semi_sync_source_enabled = ON"}
			}
			for _, q := range turnOn {
				if err := s.Exec(q); err != nil {
					t.Fatal(err)
				}
			}
			p := open(t, s.DSN(), "pool_commit_timeout=1s&pool_stall_after=500ms")
			start := time.Now()
			err := p.WithSession(t.Context(), labtest.Insert(1))
			took := time.Since(start)
			t.Logf("after %s: %v", roundMS(took), err)
			if err != nil || took < 3*time.Second || p.Stats().Retried != 0 {
				t.Errorf("want nil after 4 s, Retried %d", p.Stats().Retried)
			}
		})
	}
}

// While the server cannot be asked CommitTimeout is the bound, and so it is for a
// pool that is closed.
func TestHeldUpCommitEndsWhereNobodyCanAsk(t *testing.T) {
	onEachServer(t, func(t *testing.T, s *server.Server) {
		for i, tt := range []struct {
			name string
			cut  func(p *livepool.Pool, hang func(bool))
		}{
			{"the server cannot be reached any more", func(_ *livepool.Pool, hang func(bool)) { hang(true) }},
			{"the pool is closed", func(p *livepool.Pool, _ func(bool)) { p.Close() }},
		} {
			t.Run(tt.name, func(t *testing.T) {
				px := proxyTo(t, s)
				p := open(t, s.DSNVia(px.Addr()), "pool_commit_timeout=500ms&pool_stall_after=20s&pool_connect_timeout=500ms")
				tx, err := p.Begin()
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec(fmt.Sprintf("INSERT INTO t (v) VALUES (%d)", i)); err != nil {
					t.Fatal(err)
				}
				release := flushLock(t, s)
				defer release()
				done := make(chan error, 1)
				go func() { done <- tx.Commit() }()
				labtest.Eventually(t, "it has been waited for", func() bool { return p.Stats().StallChecks > 2 })
				tt.cut(p, px.HangNew)
				start := time.Now()
				select {
				case err := <-done:
					t.Logf("%s later: %v", roundMS(time.Since(start)), err)
					if !errors.Is(err, livepool.ErrCommitUnknown) {
						t.Error("want ErrCommitUnknown")
					}
				case <-time.After(10 * time.Second):
					t.Error("it does not end")
				}
			})
		}
	})
}
