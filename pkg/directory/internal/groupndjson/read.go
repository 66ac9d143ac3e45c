// Package groupndjson reads a Group resource (FHIR R4) from one line of NDJSON. A group may have any number of members:
// they are streamed, never held in memory. Errors contain no content of the line.
package groupndjson

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Header is a group without its members.
type Header struct {
	ID         string
	Exportable bool // neither inactive (active false) nor definitional (actual false)
	Version
}

// ErrOtherType means that the line is a resource of another type.
var ErrOtherType = errors.New("not a Group resource")

// Read reads a resource to the end of the line and calls each for every member. It holds one member or other element at
// a time. An error of each ends the read and is returned unchanged. A blank line is io.EOF. After any other error the
// header has the id and the version if these can be told.
func Read(line io.Reader, each func(Member) error) (Header, error) {
	var typ string
	var invalid error // the first element that is not valid, in a line that can be read on
	group := Header{Exportable: true}
	seen := make(map[string]bool)
	dec := json.NewDecoder(line)
	err := eachElement(dec, func(name string) (more bool, err error) {
		decides := slices.Contains(decisive, name)
		switch {
		case decides && seen[name]:
			invalid = cmp.Or(invalid, fmt.Errorf("%s is duplicate", name))
			return true, skip(dec)
		case !decides && isOdd(name):
			invalid = cmp.Or(invalid, errors.New("a key that another parser could read otherwise"))
			return true, skip(dec)
		}
		if decides {
			seen[name] = true
		}
		switch name {
		case "resourceType":
			if err = decode(dec, name, &typ); typ != "" && !strings.EqualFold(typ, "Group") {
				return false, ErrOtherType
			}
		case "id":
			err = decode(dec, name, &group.ID)
		case "meta":
			err = group.Version.read(dec)
		case "active", "actual":
			var yes *bool
			if err = decode(dec, name, &yes); err == nil && yes == nil {
				err = mistypedError{name}
			}
			group.Exportable = group.Exportable && err == nil && *yes
		case "member":
			return true, eachMember(dec, func(m Member, err error) error {
				if err != nil {
					invalid = cmp.Or(invalid, err)
					return nil
				}
				return each(m)
			})
		default:
			return true, skip(dec)
		}
		if canContinue(err) {
			invalid, err = cmp.Or(invalid, err), nil
		}
		return true, err
	})
	if errors.Is(err, io.EOF) {
		return Header{}, io.EOF
	}
	if !fhir.IsID(group.ID) {
		group.ID = ""
	}
	if err == nil {
		err = invalid
	}
	switch {
	case err != nil:
		return group, err
	case typ != "Group":
		return group, errors.New("resourceType is missing or not Group")
	case group.ID == "":
		return group, errors.New("id is missing or not a FHIR id")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return group, errors.New("text after the resource")
	}
	return group, nil
}

// decisive are the elements that are read.
var decisive = []string{"resourceType", "id", "meta", "active", "actual", "member"}

// isOdd reports whether another parser could take the key for one that is read: it differs only in case, or has a NUL or,
// replaced by the decoder, half a surrogate pair.
func isOdd(key string) bool {
	return strings.ContainsAny(key, "\x00\uFFFD") ||
		slices.ContainsFunc(decisive, func(name string) bool { return strings.EqualFold(name, key) })
}

// Members reads a line that Read accepts, up to the end of its members. An error of each ends the read and is
// returned unchanged.
func Members(line io.Reader, each func(Member) error) error {
	dec := json.NewDecoder(line)
	return eachElement(dec, func(name string) (more bool, err error) {
		if name == "member" {
			return false, eachMember(dec, func(m Member, err error) error {
				if err != nil {
					return err
				}
				return each(m)
			})
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

// eachMember calls f for each element of the next array, with an error for an element of the wrong form.
func eachMember(dec *json.Decoder, f func(Member, error) error) error {
	start, err := dec.Token()
	if err != nil {
		return errNotJSON
	}
	if start != json.Delim('[') {
		return errors.New("member is not an array")
	}
	for dec.More() {
		var m Member
		err := decode(dec, "member", &m)
		if errors.Is(err, errNotJSON) {
			return err
		}
		if err := f(m, err); err != nil {
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

// mistypedError is the error of a value of the wrong type. The decoder can continue after it.
type mistypedError struct{ name string }

func (e mistypedError) Error() string { return e.name + " has a value of the wrong type" }

// canContinue reports whether the error is about one value, so that the decoder can continue after it.
func canContinue(err error) bool {
	var mistyped mistypedError
	var key keyError
	return errors.As(err, &mistyped) || errors.As(err, &key)
}

// decode reads the next value.
func decode(dec *json.Decoder, name string, to any) error {
	err := dec.Decode(to)
	var mistyped *json.UnmarshalTypeError
	var key keyError
	switch {
	case errors.As(err, &key):
		return fmt.Errorf("%s: %w", name, key)
	case errors.As(err, &mistyped):
		return mistypedError{name}
	case err != nil:
		return errNotJSON
	}
	return nil
}

func skip(dec *json.Decoder) error {
	var skipped json.RawMessage
	return decode(dec, "", &skipped)
}
