package elements

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Projection reduces the lines of one type. It is safe for concurrent use.
type Projection struct {
	keep map[string]bool // by key
}

// The tag of a reduced resource. A suite compares the whole object, so it has no display (P-19).
const (
	system = "http://terminology.hl7.org/CodeSystem/v3-ObservationValue"
	code   = "SUBSETTED"
	tag    = `{"system":"` + system + `","code":"` + code + `"}`
)

// Apply appends the reduced line to buffer. The line is one that fhir.Scanner accepts, without its newline, and of the
// projection's type. A meta or a meta.tag that is not of the form of R4 is replaced. An error means that the line is not a
// JSON object; it has a position and no content, and the buffer is returned as it was.
func (p *Projection) Apply(buffer, line []byte) ([]byte, error) {
	out, tagged := append(buffer, '{'), false
	var inMeta error
	err := fhir.EachMember(line, func(key, whole, value []byte) {
		switch {
		case !p.keep[string(key)]:
		case string(key) == "meta":
			tagged = true
			out = append(comma(out), `"meta":`...)
			out, inMeta = appendMeta(out, value)
		default:
			out = append(comma(out), whole...)
		}
	})
	if err == nil {
		err = inMeta
	}
	if err != nil {
		return buffer, fmt.Errorf("reduce a line to its elements: %w", err)
	}
	if !tagged {
		out = append(comma(out), `"meta":{"tag":[`+tag+`]}`...)
	}
	return append(out, '}'), nil
}

// comma separates the next member from an earlier one of the object at the end of out.
func comma(out []byte) []byte {
	if out[len(out)-1] == '{' {
		return out
	}
	return append(out, ',')
}

// appendMeta appends a meta with the tag.
func appendMeta(out, meta []byte) ([]byte, error) {
	out = append(out, '{')
	if meta[0] != '{' {
		return append(out, `"tag":[`+tag+`]}`...), nil
	}
	tagged := false
	err := fhir.EachMember(meta, func(key, whole, value []byte) {
		if string(key) != "tag" {
			out = append(comma(out), whole...)
			return
		}
		tagged = true
		out = append(comma(out), `"tag":`...)
		out = appendTags(out, value)
	})
	if !tagged {
		out = append(comma(out), `"tag":[`+tag+`]`...)
	}
	return append(out, '}'), err
}

// appendTags appends the array of tags with the tag.
func appendTags(out, tags []byte) []byte {
	switch {
	case tags[0] != '[' || len(bytes.TrimSpace(tags[1:len(tags)-1])) == 0:
		return append(out, `[`+tag+`]`...)
	case hasTag(tags):
		return append(out, tags...)
	}
	out = append(out, tags[:len(tags)-1]...)
	return append(out, `,`+tag+`]`...)
}

// hasTag reports whether the array has the tag, with or without a display. It decodes only arrays that may have it.
func hasTag(tags []byte) bool {
	type coding struct{ System, Code string }
	if !bytes.Contains(tags, []byte(code)) && bytes.IndexByte(tags, '\\') < 0 {
		return false
	}
	var all []coding
	return json.Unmarshal(tags, &all) == nil && slices.Contains(all, coding{system, code})
}
