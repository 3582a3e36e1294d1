package main

import (
	"context"
	"testing"
	"time"

	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
	"gorm.io/plugin/dbresolver"

	"github.com/livepool/livepool"
	"github.com/livepool/livepool/examples/internal/storm"
)

type item struct {
	ID   int64
	V    int64
	Big  uint64
	Note *string
	At   time.Time
}

type gormDB struct{ *gorm.DB }

func (f gormDB) Insert(ctx context.Context, i *storm.Item) error {
	row := item(*i)
	return f.WithContext(ctx).Create(&row).Error
}

func (f gormDB) Find(ctx context.Context, v int64) (items []storm.Item, err error) {
	err = f.WithContext(ctx).Model(&item{}).Where("v = ?", v).Find(&items).Error
	return items, err
}

func (f gormDB) Transaction(ctx context.Context, fn func(storm.DB) error) error {
	return f.WithContext(ctx).Transaction(func(tx *gorm.DB) error { return fn(gormDB{tx}) })
}

// mode opens GORM with a configuration; then plugs something in.
func mode(name string, cfg gorm.Config, then func(*livepool.Pool, *gorm.DB) error) storm.Mode {
	return storm.Mode{Name: name, Open: func(p *livepool.Pool) (storm.DB, storm.InUnit, error) {
		cfg := cfg // for each server
		cfg.Logger = logger.Discard
		db, err := gorm.Open(mysql.New(mysql.Config{Conn: p.DB}), &cfg)
		if err == nil && then != nil {
			err = then(p, db)
		}
		return gormDB{db}, func(ctx context.Context, s *livepool.Session) (storm.DB, error) {
			unit, err := Unit(ctx, s, db)
			return gormDB{unit}, err
		}, err
	}}
}

// resolve has reads go to a replica, which here is the same pool: a read that leaves its unit
// does not see what that has written.
func resolve(p *livepool.Pool, db *gorm.DB) error {
	return db.Use(dbresolver.Register(dbresolver.Config{
		Replicas: []gorm.Dialector{mysql.New(mysql.Config{Conn: p.DB})},
	}))
}

func TestGORM(t *testing.T) {
	storm.Test(t, "GORM", run,
		mode("plain", gorm.Config{}, nil),
		mode("PrepareStmt", gorm.Config{PrepareStmt: true}, nil),
		mode("dbresolver", gorm.Config{}, resolve),
		mode("dbresolver with PrepareStmt", gorm.Config{PrepareStmt: true}, resolve))
}
