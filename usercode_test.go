package livepool_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/DATA-DOG/go-sqlmock"
	"github.com/cenkalti/backoff/v4"
	"github.com/go-sql-driver/mysql"
	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/fakedb"
	"github.com/livepool/livepool/internal/lab/labtest"
)

// panickingHandler is a slog.Handler, and a logger of the driver's, with a fault.
type panickingHandler struct{ slog.Handler }

func (panickingHandler) Enabled(context.Context, slog.Level) bool { panic("the logger's fault") }

// A panic in what the user put into the Config takes neither the program nor
// the pool with it: the caller gets an answer, the pool works on, and the log
// says whose fault it was.
func TestPanicInTheUsersCodeIsContained(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(cfg *livepool.Config)
		says   string
	}{
		{"Classify", func(cfg *livepool.Config) {
			cfg.Classify = func(error) (livepool.Class, bool) { panic("a fault") }
		}, "Config.Classify"},
		{"BackOff", func(cfg *livepool.Config) { cfg.BackOff = func() backoff.BackOff { panic("a fault") } }, "Config.BackOff"},
		{"a BackOff that is nil", func(cfg *livepool.Config) { cfg.BackOff = func() backoff.BackOff { return nil } }, "Config.BackOff"},
		{"Logger", func(cfg *livepool.Config) { cfg.Logger = slog.New(panickingHandler{}) }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, log := &fakedb.DB{}, &labtest.Log{}
				p := openFake(t, f, func(cfg *livepool.Config) {
					cfg.Logger = slog.New(log)
					tt.change(cfg)
				})
				n := 0
				f.OnExec = func(context.Context, *fakedb.Conn, string) error {
					if n++; n < 4 {
						return fakedb.ServerError(1213, "Deadlock found")
					}
					return nil
				}
				err := p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
					return err
				})
				if err != nil || n != 4 {
					t.Errorf("got %v after %d runs, want success at the fourth", err, n)
				}
				if tt.says != "" && len(log.About(tt.says+" panicked")) == 0 {
					t.Errorf("the log does not say that %s panicked", tt.says)
				}
				if _, err := p.ExecContext(t.Context(), "UPDATE t SET a = 2"); err != nil {
					t.Errorf("afterwards: %v", err)
				}
				p.Close()
			})
		})
	}
}

// So too where a connection is opened, by a caller or in the background.
func TestPanicWhileConnectingIsContained(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(my *mysql.Config)
	}{
		{"DialFunc", func(my *mysql.Config) {
			my.DialFunc = func(context.Context, string, string) (net.Conn, error) { panic("a fault") }
		}},
		{"BeforeConnect", func(my *mysql.Config) {
			my.Apply(mysql.BeforeConnect(func(context.Context, *mysql.Config) error { panic("a fault") }))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := &labtest.Log{}
				cfg := livepool.NewConfig()
				cfg.MySQL, cfg.MinIdle, cfg.Logger = mysql.NewConfig(), 2, slog.New(log) // MinIdle dials in the background
				tt.change(cfg.MySQL)
				p, err := livepool.OpenConfig(cfg)
				if err != nil {
					t.Fatal(err)
				}
				defer p.Close()
				if _, err := p.ExecContext(t.Context(), "DO 1"); err == nil || !strings.Contains(err.Error(), "panicked") {
					t.Errorf("a statement: got %v, want to be told of the panic", err)
				}
				err = p.WithSession(t.Context(), func(ctx context.Context, s *livepool.Session) error {
					_, err := s.ExecContext(ctx, "DO 1")
					return err
				}, livepool.MaxAttempts(1))
				if err == nil || !strings.Contains(err.Error(), "panicked") {
					t.Errorf("a unit: got %v, want to be told of the panic", err)
				}
				if told := log.About("panicked"); len(told) == 0 || !strings.Contains(told[0], "a fault") {
					t.Errorf("the log does not say what happened")
				}
			})
		})
	}
}

// A test of a health check on sqlmock sees the failure that it asked for; one
// that the server may have closed is still replaced, and the fresh one pinged.
func TestPingOfAnyDriverSaysWhatTheDriverSays(t *testing.T) {
	dsn := fmt.Sprint("ping ", time.Now().UnixNano())
	db, mock, err := sqlmock.NewWithDSN(dsn, sqlmock.MonitorPingsOption(true))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	p := labtest.Open(t, dsnConnector{db.Driver(), dsn}, nil)
	sick := errors.New("sick")
	mock.ExpectPing().WillReturnError(sick)
	mock.ExpectPing()
	if err := p.PingContext(t.Context()); err != sick {
		t.Errorf("got %v, want what the driver says", err)
	}
	if err := p.PingContext(t.Context()); err != nil {
		t.Errorf("well again: %v", err)
	}
	mock.ExpectClose()

	f := &fakedb.DB{}
	p = openFake(t, f, nil)
	fakedb.Warm(t, p.DB, 1)
	f.Kill()
	if err := p.PingContext(t.Context()); err != nil || f.Connects.Load() != 2 {
		t.Errorf("got %v, %d connections, want another in place of the dead one", err, f.Connects.Load())
	}
	f.OnPing = func(context.Context, *fakedb.Conn) error { return io.ErrUnexpectedEOF }
	if err := p.PingContext(t.Context()); err == nil {
		t.Error("every ping fails, and PingContext says nil")
	}
}

// Close ends what waits for it, and nothing is opened afterwards.
func TestCloseLeavesNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakedb.DB{}
		p := openFake(t, f, func(cfg *livepool.Config) { cfg.PoolSize, cfg.MaxOverflow = 1, 0 })
		held, err := p.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		busy := make(chan struct{})
		unit := func(ctx context.Context, s *livepool.Session) error {
			_, err := s.ExecContext(ctx, "UPDATE t SET a = 1")
			<-busy
			return err
		}
		done := make(chan error, 2)
		for range 2 { // one waits for a connection, the other for a place
			go func() { done <- p.WithSession(t.Context(), unit) }()
			synctest.Wait()
		}
		start := time.Now()
		p.Close()
		close(busy)
		for range 2 {
			if err := <-done; err == nil || errors.Is(err, livepool.ErrPoolTimeout) {
				t.Errorf("got %v, want to be told that the pool is closed", err)
			}
		}
		if waited := time.Since(start); waited > time.Second {
			t.Errorf("units waited for %s after Close", waited)
		}
		f.Kill()
		if err := held.PingContext(t.Context()); err == nil {
			t.Error("a ping on a connection that is held beyond Close says nil")
		}
		if n := f.Connects.Load(); n != 1 {
			t.Errorf("%d connections opened, want none after Close", n-1)
		}
		held.Close()
	})
}

// Whichever way a Config is printed, the password is not in it.
func TestConfigPrintsWithoutThePassword(t *testing.T) {
	cfg, err := livepool.ParseDSN("app:s3cret@tcp(db:3306)/shop?pool_size=7")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("opening", "config", cfg, "by value", *cfg)
	for _, text := range []string{
		fmt.Sprintf("%s %v %+v %#v", cfg, cfg, cfg, cfg), fmt.Sprintf("%s %v %+v %#v", *cfg, *cfg, *cfg, *cfg),
		fmt.Sprint(struct{ C *livepool.Config }{cfg}), log.String(),
	} {
		if strings.Contains(text, "s3cret") {
			t.Errorf("the password is in %s", text)
		}
	}
	if text := cfg.String(); !strings.Contains(text, "app@tcp(db:3306)/shop") || !strings.Contains(text, "pool_size=7") {
		t.Errorf("%s does not say what is set", text)
	}
}

// An error says where the connection would have led, as the driver fills it in.
func TestAddressIsWhatTheDriverDials(t *testing.T) {
	cfg := livepool.NewConfig()
	cfg.MySQL = &mysql.Config{Addr: "127.0.0.1:1"}
	p, err := livepool.OpenConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.PingContext(t.Context()); err == nil || !strings.Contains(err.Error(), "tcp(127.0.0.1:1)") {
		t.Errorf("got %v, want the address in it", err)
	}
}

// A setting that was misspelt, or is called so by another pool, is an error at
// Open that says what was meant. Without that it would become a variable of the
// server, and fail at every connect.
func TestNearMissesAreToldAtOpen(t *testing.T) {
	for name, meant := range map[string]string{
		"poolsize": "pool_size", "poolSize": "pool_size", "pool%5Fsize": "pool_size", "POOL_SIZE": "pool_size",
		"pool_sise": "pool_size", "pool-size": "pool_size", "maximumPoolSize": "pool_size", "SetMaxOpenConns": "pool_size",
		"max_open_conns": "pool_size", "max_overflow": "pool_max_overflow", "maxOverflow": "pool_max_overflow",
		"pool_max_conns": "pool_size", "maxLifetime": "pool_recycle", "connMaxLifetime": "pool_recycle",
		"pool_max_conn_lifetime": "pool_recycle", "recycle": "pool_recycle", "pre_ping": "pool_pre_ping",
		"pool_preping": "pool_pre_ping", "minimumIdle": "pool_min_idle", "min_idle": "pool_min_idle", "idleTimeout": "pool_idle_timeout",
		"connectionTimeout": "pool_timeout", "leakDetectionThreshold": "pool_leak_after", "pool_keep_alive": "pool_keepalive",
	} {
		_, err := livepool.Open(base + "?parseTime=true&" + name + "=3")
		if err == nil || !strings.Contains(err.Error(), "did you mean "+meant+"?") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want to be asked whether %s was meant", name, err, meant)
		}
	}
	for _, name := range []string{"timeout", "sql_mode", "wait_timeout", "lock_wait_timeout", "max_statement_time", "net_read_timeout", "time_zone", "max_allowed_packet", "idle_transaction_timeout"} {
		if _, err := livepool.ParseDSN(base + "?" + name + "=3s"); err != nil {
			t.Errorf("%s, which is the driver's or the server's: %v", name, err)
		}
	}
	if _, err := livepool.Open(base + "?pooled=3"); err == nil || !strings.Contains(err.Error(), "known are") {
		t.Errorf("pooled: got %v, want what is known", err)
	}
	cfg := livepool.NewConfig()
	cfg.MySQL = mysql.NewConfig()
	cfg.MySQL.Params = map[string]string{"pool_size": "3"} // read by the driver's ParseDSN
	if _, err := livepool.OpenConfig(cfg); err == nil || !strings.Contains(err.Error(), "Config.PoolSize") {
		t.Errorf("got %v, want the field to set", err)
	}
}

// Words are read as the driver reads them, and as SQLAlchemy's users write them.
func TestWordsAreReadInAnyCase(t *testing.T) {
	for params, want := range map[string]func(c *livepool.Config) bool{
		"pool_pre_ping=True":        func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingIdle },
		"pool_pre_ping=1":           func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingIdle },
		"pool_pre_ping=FALSE":       func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingOff },
		"pool_pre_ping=0":           func(c *livepool.Config) bool { return c.PrePing == livepool.PrePingOff },
		"pool_kill_abandoned=TRUE":  func(c *livepool.Config) bool { return c.KillAbandoned },
		"pool_kill_abandoned=False": func(c *livepool.Config) bool { return !c.KillAbandoned },
		"pool_beacon=Off":           func(c *livepool.Config) bool { return c.Beacon == livepool.BeaconOff },
		"pool_recycle=-1":           func(c *livepool.Config) bool { return c.Recycle == 0 },
	} {
		if cfg, err := livepool.ParseDSN(base + "?" + params); err != nil || !want(cfg) {
			t.Errorf("%s: %v, %v", params, cfg, err)
		}
	}
}
