// Package frameworks_test runs frameworks as they are on livepool. It is a module of its
// own, so that the library requires none of them.
package frameworks_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/internal/lab/labtest"
	"github.com/livepool/livepool/internal/lab/server"
	"github.com/livepool/livepool/internal/lab/server/servertest"
)

type row struct {
	ID uint
	V  int
}

// openGorm opens GORM on a pool with the default settings.
func openGorm(t *testing.T, s *server.Server) *gorm.DB {
	t.Helper()
	p, err := livepool.Open(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	db, err := gorm.Open(mysql.New(mysql.Config{Conn: p.DB}), &gorm.Config{Logger: logger.Discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.AutoMigrate(&row{}); err != nil {
		t.Fatal(err)
	}
	return db
}

// A restart costs GORM's Create at most the call that each worker has under way; where the
// server needs longer to start than OutageWait, who has waited that long is told so. No
// row is lost whose Create succeeded.
func TestGormCreateOverARestart(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		const workers = 8
		db := openGorm(t, s)
		done, failed := labtest.RestartUnderWorkers(t, s, workers, func() error { return db.Create(&row{V: 1}).Error }, func(time.Time) {})
		var rows int64
		if err := db.Model(&row{}).Count(&rows).Error; err != nil {
			t.Fatal(err)
		}
		if rows < done || rows > done+failed {
			t.Errorf("%d rows of %d that succeeded and %d that failed", rows, done, failed)
		}
	})
}

// GORM in a unit of work, by Session.Tx: what it does is committed, or rolled back, with
// the unit, and its own transactions are savepoints.
func TestGormInAUnit(t *testing.T) {
	servertest.Each(t, func(t *testing.T, s *server.Server) {
		openGorm(t, s)
		p, err := livepool.Open(s.DSN())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		unit := func(v int, result error) error {
			return p.WithSession(t.Context(), func(ctx context.Context, u *livepool.Session) error {
				tx, err := u.Tx(ctx)
				if err != nil {
					return err
				}
				db, err := gorm.Open(mysql.New(mysql.Config{Conn: tx, SkipInitializeWithVersion: true}), &gorm.Config{Logger: logger.Discard})
				if err != nil {
					return err
				}
				if err := db.WithContext(ctx).Create(&row{V: v}).Error; err != nil {
					return err
				}
				return result
			})
		}
		refused := errors.New("refused")
		if err := unit(1, nil); err != nil {
			t.Error(err)
		}
		if err := unit(2, refused); !errors.Is(err, refused) {
			t.Error(err)
		}
		for v, want := range map[int]int{1: 1, 2: 0} {
			var n int
			if err := p.QueryRow("SELECT COUNT(*) FROM `rows` WHERE v = ?", v).Scan(&n); err != nil || n != want {
				t.Errorf("%d rows of unit %d, want %d: %v", n, v, want, err)
			}
		}
	})
}
