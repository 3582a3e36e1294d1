package committable

import (
	"encoding/hex"
	"reflect"
	"strconv"
)

// IDText is an id as it stands in a key: decimal, as it is, or 32 hexadecimal digits. It is
// an integer, a string or a [16]byte, or of a type of one of these kinds.
func IDText(id any) string {
	// By kind, past any String method, which need not tell ids apart.
	switch v := reflect.ValueOf(id); {
	case v.Kind() == reflect.String:
		return v.String()
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	default:
		uuid := v.Convert(reflect.TypeFor[[16]byte]()).Interface().([16]byte)
		return hex.EncodeToString(uuid[:])
	}
}
