// The error channel: no exception leaves the shim.

#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <new>

namespace beige {

enum Code : int { kOk = 0, kFailed = 1, kOutOfMemory = 2 };

// Keeps the text for `beige_last_error` of this thread.
Code fail(Code code, const char* text) noexcept;

template <typename Body>
int guarded(Body&& body) noexcept {
  try {
    body();
    return kOk;
  } catch (const c10::OutOfMemoryError& error) {
    return fail(kOutOfMemory, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    return fail(kFailed, error.what_without_backtrace());
  } catch (const std::bad_alloc& error) {
    return fail(kOutOfMemory, error.what());
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  } catch (...) {
    return fail(kFailed, "an exception of an unknown kind");
  }
}

}  // namespace beige
