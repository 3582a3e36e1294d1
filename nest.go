// nest.go runs a unit of work inside another one, in the transaction of the
// outer one, with a savepoint to undo it by. So nested units need one connection
// only, and cannot lock up the pool among themselves.

package livepool

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// runInner runs a unit inside another one, in its transaction.
func (s *Session) runInner(ctx context.Context, fn func(context.Context, *Session) error, o *sessionOptions) (err error) {
	if err := s.checkInner(o); err != nil {
		return err
	}
	if !s.innerRunning.CompareAndSwap(false, true) {
		return fmt.Errorf("livepool: %s: another unit is running inside %s at the same time: savepoints only nest; use RequiresNew", o.name, s.options.name)
	}
	defer s.innerRunning.Store(false)
	inner := &Session{pool: s.pool, options: o, parent: s, root: s.root, attemptNumber: s.root.attemptNumber, caller: ctx, depth: s.depth + 1}
	if _, err := s.Tx(ctx); err != nil {
		return err
	}
	// Not under the inner context: a statement that this one kept from being sent
	// would be missing in the outer unit.
	if err := s.execOwn(&s.root.fnContext, "SAVEPOINT "+inner.savepoint()); err != nil {
		return err
	}
	s.innerUnreleased.Store(true)
	defer func() { s.innerUnreleased.Store(inner.notUndone) }()
	inner.fnContext = sessionContext{ctx, inner}
	returned := false
	defer func() {
		inner.stopStatements()
		if !returned {
			inner.undoInner()
		}
		inner.closeDB()
	}()
	if o.hasOnce {
		keyed := &s.root.attempt.HasKey
		defer keyed.Store(keyed.Swap(true))
		err = inner.insertKey(&inner.fnContext, o.once)
	}
	if err == nil {
		err = ownError(fn(&inner.fnContext, inner))
	}
	inner.stopStatements()
	returned = true
	if err == nil {
		err = inner.unfinishedErr()
	}
	if err == nil && ctx.Err() != nil {
		err = &sessionDoneError{unit: o.name, cause: contextError(ctx)}
	}
	switch {
	case err == nil:
		// Not under the inner context: from here on its work is the outer unit's.
		if err = s.execOwn(&s.root.fnContext, "RELEASE SAVEPOINT "+inner.savepoint()); err != nil {
			inner.undoInner()
			return err
		}
		s.adopt(inner)
	case errors.Is(err, errKeyTaken):
		inner.undoInner()
		err = o.alreadyApplied()
	default:
		inner.undoInner()
	}
	return err
}

// adopt takes over what a unit inside this one leaves that has ended well.
func (s *Session) adopt(inner *Session) {
	s.innerEnded.Add(1)
	s.keepKeys(inner)
	s.takeHooks(inner)
}

// checkInner says why a unit with such options cannot run inside this one.
func (s *Session) checkInner(o *sessionOptions) error {
	tx, outer := o.tx, s.root.options
	if o.fromReplica { // of which that is only the condition
		tx.ReadOnly = outer.tx.ReadOnly
	}
	if tx != outer.tx && (tx.Isolation != 0 || tx.ReadOnly) {
		return fmt.Errorf("livepool: %s runs inside %s and shares its transaction, of which it cannot change the isolation or make it read-only: use RequiresNew, or give the options to the outer unit", o.name, s.options.name)
	}
	if o.after != "" && o.after != outer.after && outer.fromReplica {
		return fmt.Errorf("livepool: %s runs inside %s, which is FromReplica, and whose replica may lack what this one is After: give After to the outer unit, or use RequiresNew", o.name, outer.name)
	}
	if implicit := s.root.attempt.Snapshot().ImplicitCommit; o.hasOnce && implicit != "" {
		return fmt.Errorf("livepool: %s, inside %s, is refused: %q has committed, or may have, and so ended the transaction: "+
			"the key of Once would be committed at once, and not with the work; use RequiresNew, or let it come before", o.name, s.root.options.name, implicit)
	}
	return nil
}

// isKeyHeld says whether a unit of the pool that ctx is inside of has the key. With own,
// for a unit that has a transaction of its own, the keys of inner units that have ended
// count too: their transaction is still open, so that the insert would wait for it. In
// that same transaction the key would be a redelivery.
func isKeyHeld(ctx context.Context, p *Pool, key string, own bool) bool {
	for {
		s, ok := p.FromContext(ctx)
		if !ok {
			return false
		}
		ctx = s.root.caller // which a unit that RequiresNew shares with what is around it
		for ; s != nil; s = s.parent {
			if s.options.hasOnce && s.options.once == key || own && s.hasKey(key) {
				return true
			}
		}
		own = true // what is around its root is of another transaction
	}
}

// keepKeys notes the keys of a unit inside this one that has ended well: they are in
// the transaction as long as this one is not undone.
func (s *Session) keepKeys(inner *Session) {
	if !inner.options.hasOnce && inner.innerKeys == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.innerKeys = append(s.innerKeys, inner.innerKeys...)
	if inner.options.hasOnce {
		s.innerKeys = append(s.innerKeys, inner.options.once)
	}
}

func (s *Session) hasKey(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.innerKeys, key)
}

// savepoint is the name of the unit's. Two of one name would replace each other.
func (s *Session) savepoint() string { return fmt.Sprint("livepool_", s.depth) }

// undoInner undoes what a unit inside another one has done. If that fails the outer unit is
// not committed. If it is refused because the unit around this one has ended, that one is
// undone, because its function did not wait for this unit.
func (s *Session) undoInner() {
	root := s.root
	err := s.parent.execOwn(&root.fnContext, "ROLLBACK TO SAVEPOINT "+s.savepoint())
	if err == nil {
		err = s.parent.execOwn(&root.fnContext, "RELEASE SAVEPOINT "+s.savepoint())
	}
	switch {
	case err == nil:
	case s.parent.hasEnded():
		s.notUndone = true
	default:
		root.setRollbackOnly(fmt.Errorf("livepool: nothing is committed, because %s, inside %s, could not be undone: %w", s.options.name, root.options.name, err))
	}
}
