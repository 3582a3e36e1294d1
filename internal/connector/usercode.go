package connector

import (
	"context"
	"database/sql/driver"
	"errors"

	"github.com/livepool/livepool/internal/mysqlerr"
)

// Classify is Classify with the user's override.
func (ctr *Connector) Classify(err error) mysqlerr.Class {
	if class, decided := ctr.override(err); decided {
		return class
	}
	return mysqlerr.Classify(err)
}

// override is what the user's Classify says, if it decides.
func (ctr *Connector) override(err error) (class mysqlerr.Class, decided bool) {
	if override := ctr.Cfg.Classify; override != nil {
		ctr.Cfg.catchPanic("Config.Classify", func() { class, decided = override(err) })
	}
	return class, decided
}

// errConnectPanicked is a connection that could not be opened because the user's
// code panicked. It is a fault of the program, and no outage.
var errConnectPanicked = errors.New("the driver, or the DialFunc or BeforeConnect of its Config, panicked; the stack is in the log")

// connectDriver has the driver open a connection, by the user's dialer and with
// the user's BeforeConnect if there are such.
func (ctr *Connector) connectDriver(ctx context.Context, by driver.Connector) (dc driver.Conn, err error) {
	if !ctr.Cfg.catchPanic("opening a connection (DialFunc, BeforeConnect or the driver)", func() { dc, err = by.Connect(ctx) }) {
		return nil, errConnectPanicked
	}
	return dc, err
}
