// What the binding sources share. Functions take parameter structs, and a struct is bound by a list of its fields:
//
//   bind_struct<Views>(module, "Views", "Samples of one or two views.",
//                      field("x", &Views::x), field("m", &Views::m), optional("threads", &Views::threads));
//
// In Python every field is a keyword of the constructor and an attribute. A pointer is an integer, the address that
// torch, NumPy and CuPy arrays all provide; every other type converts as pybind11 does it (numbers, bools, bound enums,
// bound structs, std::vector). An optional field defaults to the initialiser of the member in the C++ struct.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace py = pybind11;

void bind_cpu(py::module_& module);   // cpu.cpp
void bind_cuda(py::module_& module);  // cuda.cpp
#ifdef XMODAL_HOST_EMULATION
void bind_host(py::module_& module);  // tests/host/host.cpp
#endif

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
using InPython = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, T>;

template <class Struct, class T>
struct Field {
  const char* name;
  T Struct::* member;
  bool required;

  void set(Struct& target, py::handle value) const {
    py::detail::make_caster<InPython<T>> caster;
    if (!caster.load(value, true))
      throw py::type_error(std::string(name) + " cannot be " + std::string(py::repr(value)));
    if constexpr (std::is_pointer_v<T>)
      target.*member = reinterpret_cast<T>(py::detail::cast_op<std::uintptr_t>(caster));
    else
      target.*member = py::detail::cast_op<T>(std::move(caster));
  }
  InPython<T> get(const Struct& source) const {
    if constexpr (std::is_pointer_v<T>)
      return reinterpret_cast<std::uintptr_t>(source.*member);
    else
      return source.*member;
  }
  // Sets the field if the keywords contain it; returns whether they do.
  bool take(Struct& target, py::handle keywords, const py::object& key) const {
    PyObject* value = PyDict_GetItemWithError(keywords.ptr(), key.ptr());
    if (value)
      set(target, value);
    else if (required)
      throw py::type_error(std::string(name) + " is missing");
    return value;
  }
};

// A field that callers must give. The type of a field is bound before the struct that contains it.
template <class Struct, class T>
Field<Struct, T> field(const char* name, T Struct::* member) {
  return {name, member, true};
}

// A field that callers may leave out.
template <class Struct, class T>
Field<Struct, T> optional(const char* name, T Struct::* member) {
  return {name, member, false};
}

// The constructor looks keywords up by interned names: several times faster than a pybind11 function with an argument
// for each, which matters where a call on the device takes microseconds.
template <class Struct, class... T>
py::class_<Struct> bind_struct(py::module_& module, const char* name, const char* doc, Field<Struct, T>... fields) {
  const auto key = [](const char* text) { return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text)); };
  py::class_<Struct> type(module, name, doc);
  type.def(py::init([=, keys = std::array{key(fields.name)...}](const py::kwargs& keywords) {
    Struct result{};
    std::size_t index = 0, taken = 0;
    ((taken += fields.take(result, keywords, keys[index++])), ...);
    if (taken != keywords.size())
      throw py::type_error(std::string(name) + " has only some of the fields " +
                           std::string(py::str(py::list(keywords))));
    return result;
  }));
  (type.def_property(
       fields.name, [fields](const Struct& source) { return fields.get(source); },
       [fields](Struct& target, const py::object& value) { fields.set(target, value); }),
   ...);
  return type;
}
