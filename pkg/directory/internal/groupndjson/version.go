package groupndjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/jsonvalues"
)

// Version is what orders the versions of one group: by the number if all of them have one, else by the time; the later one
// in the files if these are equal.
type Version struct {
	Number      *int64    // meta.versionId; nil if it is missing or no number
	LastUpdated time.Time // meta.lastUpdated; zero if it is missing or not an instant
}

// meta is the part of Group.meta that is read.
type meta struct{ VersionID, LastUpdated json.RawMessage }

// UnmarshalJSON is like that of Member.
func (m *meta) UnmarshalJSON(object []byte) error {
	type plain meta
	return unmarshal(object, (*plain)(m), "versionId", "lastUpdated")
}

// read reads the next value as Group.meta. Meta of another form has no version, and is not an error.
func (v *Version) read(values *jsonvalues.Reader) error {
	var element json.RawMessage
	if err := decode(values, "meta", &element); err != nil {
		return err
	}
	var meta meta
	var key keyError
	if err := json.Unmarshal(element, &meta); errors.As(err, &key) {
		return elementError(fmt.Sprintf("meta: %v", key))
	}
	if n, err := strconv.ParseUint(text(meta.VersionID), 10, 63); err == nil {
		number := int64(n)
		v.Number = &number
	}
	if at, err := time.Parse(time.RFC3339Nano, text(meta.LastUpdated)); err == nil {
		v.LastUpdated = at.UTC()
	}
	return nil
}
