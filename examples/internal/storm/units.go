package storm

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/livepool/livepool"
)

// A unitCase is a unit of work that something happens to, and what must be left of it.
type unitCase struct {
	name     string
	run      func(ctx context.Context, s *livepool.Session, db DB) error
	want     error
	rows     []int64
	attempts int
}

// unitCases are those that every framework must get through.
func unitCases(o *opened) []unitCase {
	insert := func(ctx context.Context, v int64) func(DB) error {
		return func(db DB) error { return db.Insert(ctx, newItem(v)) }
	}
	kill := func(ctx context.Context, s *livepool.Session) error { return killOnce(ctx, o.p, s) }
	return []unitCase{
		{"committed", func(ctx context.Context, _ *livepool.Session, db DB) error {
			return firstOf(
				func() error { return db.Insert(ctx, newItem(1)) },
				func() error { return db.Transaction(ctx, insert(ctx, 2)) },
				func() error { return refused(ctx, db, insert(ctx, 3)) },
				func() error { return db.Insert(ctx, newItem(4)) },
				func() error { return mustHave(ctx, db, map[int64]int{1: 1, 2: 1, 3: 0, 4: 1}) })
		}, nil, []int64{1, 2, 4}, 1},

		{"undone", func(ctx context.Context, _ *livepool.Session, db DB) error {
			return firstOf(
				func() error { return db.Insert(ctx, newItem(1)) },
				func() error { return db.Transaction(ctx, insert(ctx, 2)) },
				func() error { return errRefused })
		}, errRefused, nil, 1},

		{"killed between transactions", func(ctx context.Context, s *livepool.Session, db DB) error {
			return firstOf(
				func() error { return db.Transaction(ctx, insert(ctx, 1)) },
				func() error { return kill(ctx, s) },
				func() error { return db.Transaction(ctx, insert(ctx, 2)) })
		}, nil, []int64{1, 2}, 2},

		{"killed in a transaction", func(ctx context.Context, s *livepool.Session, db DB) error {
			return firstOf(
				func() error { return db.Insert(ctx, newItem(1)) },
				func() error {
					return db.Transaction(ctx, func(db DB) error {
						return errors.Join(db.Insert(ctx, newItem(2)), kill(ctx, s))
					})
				})
		}, nil, []int64{1, 2}, 2},

		{"killed, and nobody told", func(ctx context.Context, s *livepool.Session, db DB) error {
			_ = db.Transaction(ctx, func(db DB) error { return errors.Join(db.Insert(ctx, newItem(1)), kill(ctx, s)) })
			_ = db.Insert(ctx, newItem(2))
			return nil
		}, nil, []int64{1, 2}, 2},
	}
}

// testUnits runs the cases, on an empty table each.
func testUnits(t *testing.T, fw Framework, o *opened) {
	cases := unitCases(o)
	if fw.Nests {
		cases = append(cases, unitCase{"nested", func(ctx context.Context, _ *livepool.Session, db DB) error {
			return db.Transaction(ctx, func(db DB) error {
				return firstOf(
					func() error { return db.Insert(ctx, newItem(1)) },
					func() error { return refused(ctx, db, func(db DB) error { return db.Insert(ctx, newItem(2)) }) },
					func() error {
						return db.Transaction(ctx, func(db DB) error { return db.Insert(ctx, newItem(3)) })
					})
			})
		}, nil, []int64{1, 3}, 1})
	} else {
		cases = append(cases, unitCase{"nested", func(ctx context.Context, _ *livepool.Session, db DB) error {
			return db.Transaction(ctx, func(db DB) error {
				return db.Transaction(ctx, func(DB) error { return nil })
			})
		}, errors.ErrUnsupported, nil, 1})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctx := t.Context()
			attempts, err := o.unit(ctx, c.run)
			if !errors.Is(err, c.want) || attempts != c.attempts {
				t.Errorf("%d attempts, error %v; want %d, %v", attempts, err, c.attempts, c.want)
			}
			want := map[int64]int{1: 0, 2: 0, 3: 0, 4: 0}
			maps.Copy(want, once(c.rows))
			if err := mustHave(ctx, o.onPool, want); err != nil {
				t.Error(err)
			}
			if _, err := o.p.Exec("DELETE FROM items"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// firstOf runs the steps up to the first that fails.
func firstOf(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func once(values []int64) map[int64]int {
	m := map[int64]int{}
	for _, v := range values {
		m[v] = 1
	}
	return m
}
