package connector

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/livepool/livepool/internal/driverconn"
	"github.com/livepool/livepool/internal/mysqlerr"
)

// Classify says what err means; the user's Classify goes first.
func (ctr *Connector) Classify(err error) mysqlerr.Class {
	if class, decided := ctr.override(err); decided {
		return class
	}
	return mysqlerr.Classify(err)
}

// override is what the user's Classify says of err, if it decides.
func (ctr *Connector) override(err error) (class mysqlerr.Class, decided bool) {
	if override := ctr.Cfg.Classify; override != nil {
		ctr.Cfg.catchPanic("Config.Classify", func() { class, decided = override(err) })
	}
	return class, decided
}

// errConnectPanicked means that a connection could not be opened because the user's code
// panicked. That is a fault of the program, not an outage.
var errConnectPanicked = errors.New("the driver, or the DialFunc or BeforeConnect of its Config, panicked; the stack is in the log")

// connectDriver has the driver open a connection, which may call the user's DialFunc and
// BeforeConnect.
func (ctr *Connector) connectDriver(ctx context.Context, by driver.Connector) (dc driver.Conn, err error) {
	if !ctr.Cfg.catchPanic("opening a connection (DialFunc, BeforeConnect or the driver)", func() { dc, err = by.Connect(ctx) }) {
		return nil, errConnectPanicked
	}
	if err == nil && ctr.Cfg.Wrap != nil && ctr.IsMySQL {
		if missing := driverconn.Missing(dc); missing != "" {
			dc.Close()
			return nil, fmt.Errorf("the connections of Config.Wrap lack driver.%s, which the driver's have: wrap them whole", missing)
		}
	}
	return dc, err
}
