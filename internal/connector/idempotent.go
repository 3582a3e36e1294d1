// idempotent.go is how a caller declares that statements may run twice.

package connector

import "context"

// idempotentKey is the context key of that declaration: a *LossCounter, or nil.
type idempotentKey struct{}

// WithIdempotent returns a context under which a statement outside a transaction may be
// sent again after its connection was lost, even if it may have run. losses counts the
// losses over several calls; without it only database/sql limits the resends.
func WithIdempotent(ctx context.Context, losses *LossCounter) context.Context {
	return context.WithValue(ctx, idempotentKey{}, losses)
}

// isIdempotent is called only after a loss, so it costs nothing otherwise.
func isIdempotent(ctx context.Context) bool { return ctx.Value(idempotentKey{}) != nil }
