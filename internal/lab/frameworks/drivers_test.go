package frameworks_test

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"entgo.io/ent/dialect"
	entsql "entgo.io/ent/dialect/sql"
	"github.com/doug-martin/goqu/v9"
	_ "github.com/doug-martin/goqu/v9/dialect/mysql"
	"github.com/jmoiron/sqlx"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/mysqldialect"
	"xorm.io/xorm"
	"xorm.io/xorm/core"
)

// This file is each framework's own way to do the few things of a framework.

type sqlxDB struct{ *sqlx.DB }

func openSqlx(db *sql.DB) (framework, error) { return sqlxDB{sqlx.NewDb(db, "mysql")}, nil }

const sqlxInsert = "INSERT INTO items (v, big, note, at) VALUES (:v, :big, :note, :at)"

func (f sqlxDB) insert(ctx context.Context, i *item) error {
	if _, err := f.NamedExecContext(ctx, sqlxInsert, i); err != nil {
		return err
	}
	var got item
	return f.GetContext(ctx, &got, "SELECT * FROM items WHERE v = ?", i.V)
}

func (f sqlxDB) all(ctx context.Context) (items []item, err error) {
	err = f.SelectContext(ctx, &items, "SELECT * FROM items ORDER BY v")
	return items, err
}

func (f sqlxDB) inTx(ctx context.Context, i *item, end func() error) error {
	tx, err := f.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	stmt, err := tx.PrepareNamedContext(ctx, sqlxInsert)
	if err != nil {
		return err
	}
	defer stmt.Close()
	if _, err := stmt.ExecContext(ctx, i); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	return tx.Commit()
}

type bunDB struct{ bun.IDB }

func openBun(db *sql.DB) (framework, error) { return bunDB{bun.NewDB(db, mysqldialect.New())}, nil }

func (f bunDB) insert(ctx context.Context, i *item) error {
	_, err := f.NewInsert().Model(i).Exec(ctx)
	return err
}

func (f bunDB) all(ctx context.Context) (items []item, err error) {
	err = f.NewSelect().Model(&items).Order("v").Scan(ctx)
	return items, err
}

// inTx does it in a transaction inside another one, after one that is undone.
func (f bunDB) inTx(ctx context.Context, i *item, end func() error) error {
	return f.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
		refused := errors.New("refused")
		err := tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			return errors.Join(bunDB{tx}.insert(ctx, i), refused)
		})
		if err := isRefused(err, refused); err != nil {
			return err
		}
		return tx.RunInTx(ctx, nil, func(ctx context.Context, tx bun.Tx) error {
			if err := (bunDB{tx}).insert(ctx, i); err != nil {
				return err
			}
			return end()
		})
	})
}

type xormDB struct{ *xorm.Engine }

func openXorm(db *sql.DB) (framework, error) {
	e, err := xorm.NewEngineWithDB("mysql", "user@tcp(anywhere)/any?parseTime=true", core.FromDB(db))
	if err != nil {
		return nil, err
	}
	e.SetTZLocation(time.UTC)
	e.SetTZDatabase(time.UTC)
	return xormDB{e}, nil
}

func (f xormDB) insert(ctx context.Context, i *item) error {
	if _, err := f.Context(ctx).Insert(i); err != nil {
		return err
	}
	found, err := f.Context(ctx).Get(&item{V: i.V})
	if err == nil && !found {
		err = sql.ErrNoRows
	}
	return err
}

func (f xormDB) all(ctx context.Context) (items []item, err error) {
	err = f.Context(ctx).OrderBy("v").Find(&items)
	return items, err
}

func (f xormDB) inTx(ctx context.Context, i *item, end func() error) error {
	s := f.NewSession().Context(ctx)
	defer s.Close() // rolls back what is not committed
	if err := s.Begin(); err != nil {
		return err
	}
	if _, err := s.Insert(i); err != nil {
		return err
	}
	if err := end(); err != nil {
		return errors.Join(err, s.Rollback())
	}
	return s.Commit()
}

type goquDB struct{ *goqu.Database }

func openGoqu(db *sql.DB) (framework, error) { return goquDB{goqu.New("mysql", db)}, nil }

func (f goquDB) insert(ctx context.Context, i *item) error {
	_, err := f.Insert("items").Prepared(true).Rows(i).Executor().ExecContext(ctx)
	return err
}

func (f goquDB) all(ctx context.Context) (items []item, err error) {
	err = f.From("items").Order(goqu.C("v").Asc()).ScanStructsContext(ctx, &items)
	return items, err
}

func (f goquDB) inTx(ctx context.Context, i *item, end func() error) error {
	return f.WithTx(func(tx *goqu.TxDatabase) error {
		if _, err := tx.Insert("items").Prepared(true).Rows(i).Executor().ExecContext(ctx); err != nil {
			return err
		}
		return end()
	})
}

// entDB is the layer below the code that ent generates.
type entDB struct{ dialect.Driver }

func openEnt(db *sql.DB) (framework, error) { return entDB{entsql.OpenDB(dialect.MySQL, db)}, nil }

func entInsert(ctx context.Context, x dialect.ExecQuerier, i *item) error {
	query, args := entsql.Dialect(dialect.MySQL).Insert("items").Columns("v", "big", "note", "at").Values(i.V, i.Big, i.Note, i.At).Query()
	var res sql.Result
	return x.Exec(ctx, query, args, &res)
}

func (f entDB) insert(ctx context.Context, i *item) error { return entInsert(ctx, f, i) }

func (f entDB) all(ctx context.Context) ([]item, error) {
	query, args := entsql.Dialect(dialect.MySQL).Select("v", "big", "note", "at").From(entsql.Table("items")).OrderBy("v").Query()
	var rows entsql.Rows
	if err := f.Query(ctx, query, args, &rows); err != nil {
		return nil, err
	}
	defer rows.Close()
	var items []item
	err := entsql.ScanSlice(rows, &items)
	return items, err
}

func (f entDB) inTx(ctx context.Context, i *item, end func() error) error {
	tx, err := f.Tx(ctx)
	if err != nil {
		return err
	}
	if err := entInsert(ctx, tx, i); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := end(); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}
