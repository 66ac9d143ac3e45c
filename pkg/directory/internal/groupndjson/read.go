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
	"strconv"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/jsonvalues"
)

// Header is a group without its members.
type Header struct {
	ID         string
	Exportable bool // neither inactive (active false) nor definitional (actual false)
	Version
	Name        string
	Identifiers []directory.Identifier
	Quantity    *int64 // nil unless it is a number of FHIR's unsignedInt
}

// ErrOtherType means that the line is a resource of another type.
var ErrOtherType = errors.New("not a Group resource")

// maxElement is the size of the longest member or other element in bytes. It bounds the memory.
const maxElement = 1 << 20

// Read reads a resource to the end of the line and calls each for every member. It holds one member or other element at
// a time. An error of each ends the read and is returned unchanged. A blank line is io.EOF. After any other error the
// header has the id and the version if these can be told.
func Read(line io.Reader, each func(Member) error) (Header, error) {
	var typ string
	var invalid error // the first element that is not valid, in a line that can be read on
	group := Header{Exportable: true}
	seen := make(map[string]bool)
	values := jsonvalues.NewReader(line, maxElement)
	if values.Ended() {
		return Header{}, io.EOF
	}
	err := object(values, func(name string) (err error) {
		decides := slices.Contains(decisive, name)
		switch {
		case decides && seen[name]:
			invalid = cmp.Or(invalid, fmt.Errorf("%s is duplicate", name))
			name = ""
		case !decides && isOdd(name):
			invalid = cmp.Or(invalid, errors.New("a key that another parser could read otherwise"))
		}
		if decides {
			seen[name] = true
		}
		switch name {
		case "resourceType":
			if err = decode(values, name, &typ); typ != "" && !strings.EqualFold(typ, "Group") {
				return ErrOtherType
			}
		case "id":
			err = decode(values, name, &group.ID)
		case "meta":
			err = group.Version.read(values)
		case "active", "actual":
			var yes *bool
			if err = decode(values, name, &yes); err == nil && yes == nil {
				err = elementError(name + mistyped)
			}
			group.Exportable = group.Exportable && err == nil && *yes
		case "member":
			return eachMember(values, func(m Member, err error) error {
				if err != nil {
					invalid = cmp.Or(invalid, err)
					return nil
				}
				return each(m)
			})
		case "name", "identifier", "quantity":
			err = group.describe(values, name)
		default:
			err = decode(values, "an element", new(skipped))
		}
		if isElement(err) {
			invalid, err = cmp.Or(invalid, err), nil
		}
		return err
	})
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
	case !values.Ended():
		return group, errors.New("text after the resource")
	}
	return group, nil
}

// describe reads the next value as the element with the name. One of another form is as if it were missing: it does not
// decide who the members are.
func (h *Header) describe(values *jsonvalues.Reader, name string) error {
	var element json.RawMessage
	if err := decode(values, name, &element); err != nil {
		return err
	}
	switch name {
	case "name":
		h.Name = text(element)
	case "identifier":
		var list []struct{ System, Value json.RawMessage }
		if json.Unmarshal(element, &list) != nil {
			list = nil
		}
		h.Identifiers = nil
		for _, one := range list {
			if id := (directory.Identifier{System: text(one.System), Value: text(one.Value)}); id != (directory.Identifier{}) {
				h.Identifiers = append(h.Identifiers, id)
			}
		}
	default:
		h.Quantity = nil
		if n, err := strconv.ParseUint(string(element), 10, 31); err == nil {
			quantity := int64(n)
			h.Quantity = &quantity
		}
	}
	return nil
}

// text returns a JSON string, or "" for another value, and for one with a NUL, which a database may not store.
func text(value json.RawMessage) (s string) {
	if json.Unmarshal(value, &s) != nil || strings.Contains(s, "\x00") {
		return ""
	}
	return s
}

// decisive are the elements that decide about the members.
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
	values := jsonvalues.NewReader(line, maxElement)
	errEnd := errors.New("the end of the members")
	err := object(values, func(name string) error {
		if name != "member" {
			return decode(values, "an element", new(skipped))
		}
		err := eachMember(values, func(m Member, err error) error {
			if err != nil {
				return err
			}
			return each(m)
		})
		return cmp.Or(err, errEnd)
	})
	if errors.Is(err, errEnd) {
		return nil
	}
	return err
}

// object calls element before the value of each element of the next object.
func object(values *jsonvalues.Reader, element func(name string) error) error {
	if next, err := values.Peek(); err != nil || next != '{' {
		return errors.New("not a JSON object")
	}
	return values.Object(element)
}

// eachMember calls f for each element of the next array, with an error for an element of the wrong form.
func eachMember(values *jsonvalues.Reader, f func(Member, error) error) error {
	if next, err := values.Peek(); err != nil || next != '[' {
		return cmp.Or(err, errors.New("member is not an array"))
	}
	return values.Array(func() error {
		var m Member
		err := decode(values, "member", &m)
		if err != nil && !isElement(err) {
			return err
		}
		return f(m, err)
	})
}

// elementError is the error of one element, after which the next one can be read.
type elementError string

func (e elementError) Error() string { return string(e) }

func isElement(err error) bool {
	var one elementError
	return errors.As(err, &one)
}

const mistyped = " has a value of the wrong type"

// skipped is an element that is not read.
type skipped struct{}

// UnmarshalJSON accepts every value.
func (*skipped) UnmarshalJSON([]byte) error { return nil }

// decode reads the next value. Its errors do not quote the line.
func decode(values *jsonvalues.Reader, name string, to any) error {
	value, long, err := values.Value()
	if err != nil {
		return err
	}
	if long {
		return elementError(fmt.Sprintf("%s is longer than %d bytes", name, maxElement))
	}
	var key keyError
	if err := json.Unmarshal(value, to); errors.As(err, &key) {
		return elementError(fmt.Sprintf("%s: %v", name, key))
	} else if err != nil {
		return elementError(name + mistyped)
	}
	return nil
}
