// nest.go runs a unit of work inside another one, in the transaction of the
// outer one, with a savepoint to undo it by. So nested units need one connection
// only, and cannot lock up the pool among themselves.

package livepool

import (
	"context"
	"errors"
	"fmt"
)

// within runs a unit inside another one, in its transaction.
func (s *Session) within(ctx context.Context, fn func(context.Context, *Session) error, o *sessionOptions) (err error) {
	if o.tx != s.root.options.tx && (o.tx.Isolation != 0 || o.tx.ReadOnly) {
		return fmt.Errorf("livepool: %s runs inside %s and shares its transaction, of which it cannot change the isolation or make it read-only: use RequiresNew, or give the options to the outer unit",
			o.name, s.options.name)
	}
	if implicit := s.root.attempt.soFar().implicit; o.hasOnce && implicit != "" {
		return fmt.Errorf("livepool: %s, inside %s, is refused: %q has committed, or may have, and so ended the transaction: "+
			"the key of Once would be committed at once, and not with the work; use RequiresNew, or let it come before", o.name, s.root.options.name, implicit)
	}
	if !s.nesting.CompareAndSwap(false, true) {
		return fmt.Errorf("livepool: %s: another unit is running inside %s at the same time: savepoints only nest; use RequiresNew", o.name, s.options.name)
	}
	defer s.nesting.Store(false)
	inner := &Session{pool: s.pool, options: o, parent: s, root: s.root, number: s.root.number, caller: ctx, depth: s.depth + 1}
	if _, err := s.ExecContext(ctx, "SAVEPOINT "+inner.savepoint()); err != nil {
		return err
	}
	s.halfway.Store(true)
	defer s.halfway.Store(false)
	inner.inside = sessionContext{ctx, inner}
	returned := false
	defer func() {
		inner.finish()
		if !returned {
			inner.undo()
		}
	}()
	if o.hasOnce {
		keyed := &s.root.attempt.keyed
		defer keyed.Store(keyed.Swap(true))
		err = inner.takeKey(&inner.inside, o.once)
	}
	if err == nil {
		err = fn(&inner.inside, inner)
	}
	inner.finish()
	returned = true
	if err == nil && inner.halfway.Load() {
		err = inner.leftBehind()
	}
	if err == nil && ctx.Err() != nil {
		err = &sessionDoneError{unit: o.name, cause: contextEnd(ctx)}
	}
	switch {
	case err == nil:
		// Not under the inner context: from here on its work is the outer unit's.
		if _, err = s.ExecContext(&s.root.inside, "RELEASE SAVEPOINT "+inner.savepoint()); err != nil {
			inner.undo()
			return err
		}
		s.adopt(inner)
	case errors.Is(err, errKeyTaken):
		inner.undo()
		err = nil
	default:
		inner.undo()
	}
	return err
}

// keyIsHeld says whether a unit of the pool that ctx is inside of has the key.
func keyIsHeld(ctx context.Context, p *Pool, key string) bool {
	for {
		s, ok := ctx.Value(poolKey{p}).(*Session)
		if !ok {
			return false
		}
		ctx = s.root.caller // which a unit that RequiresNew shares with what is around it
		for ; s != nil; s = s.parent {
			if s.options.hasOnce && s.options.once == key {
				return true
			}
		}
	}
}

// savepoint is the name of the unit's. Two of one name would replace each other.
func (s *Session) savepoint() string { return fmt.Sprint("livepool_", s.depth) }

// undo undoes what a unit inside another one has done. If that fails the outer
// unit is not committed.
func (s *Session) undo() {
	root := s.root
	_, err := s.parent.ExecContext(&root.inside, "ROLLBACK TO SAVEPOINT "+s.savepoint())
	if err == nil {
		_, err = s.parent.ExecContext(&root.inside, "RELEASE SAVEPOINT "+s.savepoint())
	}
	if err != nil {
		root.mu.Lock()
		defer root.mu.Unlock()
		root.doomed = fmt.Errorf("livepool: nothing is committed, because %s, inside %s, could not be undone: %w", s.options.name, root.options.name, err)
	}
}
