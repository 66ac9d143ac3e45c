package source

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Refused returns the type, the id and the version of a line of a stored type that is not served because it is
// malformed or beyond the limits, and whether they can be told. An older version must not be served instead (spec 11). The
// line may be cut off.
func Refused(line []byte) (facts fhir.Facts, told bool) {
	const enough = 1 << 20 // these members are at the beginning of what servers write
	dec := json.NewDecoder(bytes.NewReader(line[:min(len(line), enough)]))
	if start, err := dec.Token(); err != nil || start != json.Delim('{') {
		return facts, false
	}
	names := []string{"resourceType", "id", "meta"}
	values := make([]json.RawMessage, len(names))
	whole := true
	for whole && dec.More() {
		token, err := dec.Token()
		key, _ := token.(string)
		var value json.RawMessage
		if whole = err == nil && dec.Decode(&value) == nil; !whole {
			break
		}
		for i, name := range names {
			if !strings.EqualFold(key, name) {
				continue
			}
			if key != name || values[i] != nil {
				return facts, false // parsers differ
			}
			values[i] = value
		}
	}
	if _, err := dec.Token(); err != nil {
		whole = false
	}
	if values[0] == nil || values[1] == nil || values[2] == nil && !whole {
		return facts, false
	}
	head := `{"resourceType":` + string(values[0]) + `,"id":` + string(values[1])
	if values[2] != nil {
		head += `,"meta":` + string(values[2])
	}
	facts, err := new(fhir.Scanner).Scan([]byte(head + "}"))
	return facts, err == nil && fhir.IsStored(facts.Type)
}
