package connector_test

// Connections that are held for longer than LeakAfter.

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// Who holds a connection for longer than LeakAfter is reported, once, by name,
// with the stack of where he took it. Who returns it in time is not.
func TestLeaksAreReported(t *testing.T) {
	ways := []struct {
		name string
		take func(t *testing.T, p *livepool.Pool) (release func())
	}{
		{"sql.Conn", leakConn}, {"sql.Tx", leakTx}, {"sql.Rows", leakRows}, {"Session", leakSession},
	}
	for _, tt := range ways {
		for _, ready := range []string{"dialled", "idle", "ready", "waited for"} {
			t.Run(tt.name+", "+ready, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log labtest.CapturedLog
					d := &fakedb.RecordingDB{}
					p := labtest.OpenRecording(t, d, func(c *livepool.Config) {
						c.LeakAfter, c.Logger, c.KeepAlive = 10*time.Second, slog.New(&log), 0
						c.PoolSize, c.MaxOverflow = 1, 0
						if ready == "ready" {
							c.MinIdle = 1
						}
					})
					time.Sleep(3 * time.Second)
					synctest.Wait()
					if ready == "idle" {
						fakedb.ServedBy(t, p)
					}
					if ready == "waited for" {
						held, _ := fakedb.Take(t, p.DB, 1)
						time.AfterFunc(time.Second, func() { held[0].Close() })
					}
					reports := func() []string { synctest.Wait(); return log.LinesWith("LeakAfter") }

					release := tt.take(t, p)
					time.Sleep(10*time.Second - time.Nanosecond)
					if r := reports(); len(r) != 0 || p.Stats().Leaks != 0 {
						t.Errorf("reported before its time: %s", r)
					}
					release()
					time.Sleep(time.Minute)
					if r := reports(); len(r) != 0 || p.Stats().Leaks != 0 {
						t.Errorf("returned in time and reported: %s", r)
					}

					release = tt.take(t, p)
					time.Sleep(10*time.Second + time.Millisecond)
					if r := reports(); len(r) != 1 {
						t.Errorf("%d reports just after LeakAfter, want 1", len(r))
					}
					time.Sleep(time.Hour)
					r := reports()
					if len(r) != 1 || p.Stats().Leaks != 1 {
						t.Fatalf("%d reports, Stats says %d, want 1: %s", len(r), p.Stats().Leaks, r)
					}
					release()
					taker := "leak" + strings.TrimPrefix(tt.name, "sql.")
					for _, want := range []string{"held=10", "connector_test." + taker, "leak_test.go:"} {
						if !strings.Contains(r[0], want) {
							t.Errorf("the report lacks %q: %s", want, r[0])
						}
					}
					if named := strings.Contains(r[0], "unit=nightly report"); named != (tt.name == "Session") {
						t.Errorf("the unit's name: %s", r[0])
					}
					release = tt.take(t, p)
					time.Sleep(time.Minute)
					if n := len(reports()); n != 2 {
						t.Errorf("%d reports after the next leak, want 2", n)
					}
					release()
					d.CheckClosed(t, p)
				})
			})
		}
	}
}

func leakConn(t *testing.T, p *livepool.Pool) func() {
	c, err := p.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func() { c.Close() }
}

func leakTx(t *testing.T, p *livepool.Pool) func() {
	tx, err := p.Begin()
	if err != nil {
		t.Fatal(err)
	}
	return func() { tx.Rollback() }
}

func leakRows(t *testing.T, p *livepool.Pool) func() {
	rows, err := p.Query("SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	return func() { rows.Close() }
}

func leakSession(t *testing.T, p *livepool.Pool) func() {
	begun, finish, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "DO 1")
			close(begun)
			<-finish
			return err
		}, livepool.Name("nightly report"))
		if err != nil {
			t.Error(err)
		}
	}()
	<-begun
	return func() { close(finish); <-done }
}
