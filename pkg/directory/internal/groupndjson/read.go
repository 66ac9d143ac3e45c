// Package groupndjson reads a Group resource (FHIR R4) from one line of NDJSON. A group may have any number of members:
// they are streamed, never held in memory. Errors contain no content of the line.
package groupndjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Header is a group without its members.
type Header struct {
	ID         string
	Exportable bool // neither inactive (active false) nor definitional (actual false)
}

// Read reads a resource to the end of the line and calls each for every member. It holds one member or other element at
// a time. An error of each ends the read and is returned unchanged. A blank line is io.EOF.
func Read(line io.Reader, each func(Member) error) (Header, error) {
	var typ string
	group := Header{Exportable: true}
	seen := make(map[string]bool)
	dec := json.NewDecoder(line)
	err := eachElement(dec, func(name string) (more bool, err error) {
		decides := slices.Contains([]string{"resourceType", "id", "active", "actual", "member"}, name)
		if decides && seen[name] {
			return false, fmt.Errorf("%s is duplicate", name)
		}
		seen[name] = decides
		switch name {
		case "resourceType":
			return true, decode(dec, name, &typ)
		case "id":
			return true, decode(dec, name, &group.ID)
		case "active", "actual":
			var yes *bool
			if err := decode(dec, name, &yes); err != nil || yes == nil {
				return false, fmt.Errorf("%s is not a boolean", name)
			}
			group.Exportable = group.Exportable && *yes
			return true, nil
		case "member":
			return true, eachMember(dec, each)
		}
		return true, skip(dec)
	})
	switch {
	case err != nil:
		return Header{}, err
	case typ != "Group":
		return Header{}, errors.New("not a Group resource")
	case !fhir.IsID(group.ID):
		return Header{}, errors.New("id is missing or not a FHIR id")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Header{}, errors.New("text after the resource")
	}
	return group, nil
}

// Members reads a line that Read accepts, up to the end of its members. An error of each ends the read and is
// returned unchanged.
func Members(line io.Reader, each func(Member) error) error {
	dec := json.NewDecoder(line)
	return eachElement(dec, func(name string) (more bool, err error) {
		if name == "member" {
			return false, eachMember(dec, each)
		}
		return true, skip(dec)
	})
}

// eachElement calls f for each element of the next object, with the decoder before its value, until f returns false.
// io.EOF means that there is no next value.
func eachElement(dec *json.Decoder, f func(name string) (more bool, err error)) error {
	start, err := dec.Token()
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	if err != nil || start != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	for dec.More() {
		token, err := dec.Token()
		name, ok := token.(string)
		if err != nil || !ok {
			return errNotJSON
		}
		if more, err := f(name); err != nil || !more {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errNotJSON
	}
	return nil
}

// eachMember calls f for each element of the next array.
func eachMember(dec *json.Decoder, f func(Member) error) error {
	start, err := dec.Token()
	if err != nil {
		return errNotJSON
	}
	if start != json.Delim('[') {
		return errors.New("member is not an array")
	}
	for dec.More() {
		var m Member
		if err := decode(dec, "member", &m); err != nil {
			return err
		}
		if err := f(m); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return errNotJSON
	}
	return nil
}

// errNotJSON replaces the decoder's errors, which quote the line.
var errNotJSON = errors.New("not valid JSON")

// decode reads the next value.
func decode(dec *json.Decoder, name string, to any) error {
	err := dec.Decode(to)
	var mistyped *json.UnmarshalTypeError
	switch {
	case errors.As(err, &mistyped):
		return fmt.Errorf("%s has a value of the wrong type", name)
	case err != nil:
		return errNotJSON
	}
	return nil
}

func skip(dec *json.Decoder) error {
	var skipped json.RawMessage
	return decode(dec, "", &skipped)
}
